// The two ways to attend; cuda/attend.cu chooses.
#pragma once

#include "cuda/kernels.h"

namespace pi::cuda {

// For prompts: tiles of query heads against tiles of positions.
void attend_prompts(void* stream, const Attend& a);

}  // namespace pi::cuda
