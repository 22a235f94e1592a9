// What kernels work in, as the engine counts it without a device and as the device's kernels count it.
#include "checks/check.h"
#include "checks/cuda/device.h"
#include "cuda/workspace.h"

namespace pi::checks {
namespace {

using namespace pi::cuda;

std::string enough(const std::string& what, size_t taken, size_t needed) {
  if (taken < needed) return what + ": the engine takes " + std::to_string(taken) + " bytes, the kernel works in " + std::to_string(needed);
  return taken % 256 == 0 ? "" : what + ": " + std::to_string(taken) + " bytes are not whole pieces of 256";
}

const Check workspaces("device: kernels work in no more than the engine takes for them", [] {
  const Kernels& k = kernels_of_device();
  for (const int rows : {1, 3, 64}) {
    for (const int vocab : {1, 4096, 4097, 32000, 262144}) {
      const std::string wrong = enough("highest", highest_workspace(rows, vocab), k.highest_workspace(rows, vocab));
      if (!wrong.empty()) return wrong;
    }
    for (const int heads : {1, 12, 64}) {
      for (const int splits : {1, 7, 32}) {
        const std::string wrong = enough("attend", attention_workspace(rows, heads, 80, splits), k.attention_workspace(rows, heads, 80, splits));
        if (!wrong.empty()) return wrong;
      }
    }
  }
  return std::string();
});

}  // namespace
}  // namespace pi::checks
