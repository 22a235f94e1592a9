#include "cuda/launchers.h"

namespace pi::cuda {

const Kernels& launchers() {
  static const Kernels table{
      .receive = &cuda::receive,
      .publish = &cuda::publish,
      .scatter = &cuda::scatter,
      .stamp = &cuda::stamp,
      .norm = &cuda::norm,
      .quantize = &cuda::quantize,
      .merge = &cuda::merge,
      .project = &cuda::project,
      .gemm = &cuda::gemm,
      .activate = &cuda::activate,
      .store_kv = &cuda::store_kv,
      .attend = &cuda::attend,
      .score = &cuda::score,
      .neurons = &cuda::neurons,
      .down = &cuda::down,
      .highest = &cuda::highest,
      .sweep = &cuda::sweep,
  };
  return table;
}

}  // namespace pi::cuda
