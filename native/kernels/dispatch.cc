#include <cstdlib>
#include <string_view>

#include "kernels/kernels.h"

namespace pi::kernels {

// Defined by kernels_<isa>.cc; null where the compiler's target has no such instructions.
extern const Table* const kScalarTable;
extern const Table* const kAvx2Table;
extern const Table* const kAvx512Table;
extern const Table* const kNeonTable;

const std::vector<const Table*>& available() {
  static const std::vector<const Table*> tables = [] {
    std::vector<const Table*> found{kScalarTable};
#if defined(__x86_64__)
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vnni");
    if (avx2) found.push_back(kAvx2Table);
    if (avx512) found.push_back(kAvx512Table);
#endif
    if (kNeonTable) found.push_back(kNeonTable);
    return found;
  }();
  return tables;
}

const Table& active() {
  static const Table& chosen = []() -> const Table& {
    const char* wanted = std::getenv("PI_ISA");
    if (wanted) {
      for (const Table* table : available()) {
        if (std::string_view(table->name) == wanted) return *table;
      }
    }
    return *available().back();
  }();
  return chosen;
}

}  // namespace pi::kernels
