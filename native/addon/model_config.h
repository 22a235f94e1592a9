// The canonical config and tensor table, read from their JavaScript objects.
#pragma once

#include <napi.h>

#include <vector>

#include "engine/engine.h"

namespace pi::addon {

// `options` is OpenOptions of native/index.ts. Throws a JavaScript TypeError naming the field that does not fit.
EngineOptions read_engine_options(const Napi::Object& options);

}  // namespace pi::addon
