// Element types by their names in formats/dtypes.ts.
#pragma once

#include <napi.h>

#include <algorithm>
#include <iterator>
#include <string>

#include "base/types.h"

namespace pi::addon {

// Throws a TypeError that names the argument `what` when `name` is no element type.
inline DType read_dtype(Napi::Env env, const std::string& what, const std::string& name) {
  constexpr const char* kNames[] = {"f32", "f16", "bf16", "q8_0", "q4_0", "i32", "bit"};  // in the order of their ids
  const auto found = std::find(std::begin(kNames), std::end(kNames), name);
  if (found == std::end(kNames)) throw Napi::TypeError::New(env, what + ": unknown dtype " + name);
  return static_cast<DType>(found - std::begin(kNames));
}

}  // namespace pi::addon
