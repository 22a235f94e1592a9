// Rows that came in one piece are put where they belong, and nowhere else.
#include <cstring>

#include "checks/check.h"
#include "checks/cuda/device.h"

namespace pi::checks {
namespace {

const Check scattered("scatter: rows and numbers of any size, what lies beside them untouched", [] {
  // Rows stand on 16 bytes, numbers on 4.
  const struct {
    size_t word, bytes;
  } places[] = {{4, 16}, {13, 4}, {20, 4096}, {1045, 20}, {1060, 1040}, {1321, 4}, {1324, 12304}, {4404, 16}};
  std::vector<uint32_t> from(8192), to(8192);
  for (size_t i = 0; i < from.size(); ++i)
    from[i] = static_cast<uint32_t>(i * 2654435761u), to[i] = static_cast<uint32_t>(i);
  const DeviceArray<uint32_t> source(from), target(to);
  std::vector<cuda::Move> moves;
  size_t read = 0;
  for (const auto& [word, bytes] : places) {
    moves.push_back({target.data() + word, source.data() + read, bytes});
    std::memcpy(&to[word], &from[read], bytes);
    read += cuda::align_up(bytes, cuda::kRowAlign) / 4;
  }
  const DeviceArray<cuda::Move> device_moves(moves);
  kernels_of_device().scatter(stream(), {device_moves.data(), static_cast<int>(moves.size())});
  return target.get() == to ? std::string() : std::string("differs");
});

}  // namespace
}  // namespace pi::checks
