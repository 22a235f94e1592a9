// convertTensor(source, from, to, rows, cols, transpose, into?, scales?): Promise<Uint8Array>
// dequantize(source, from, rows, cols): Promise<Float32Array>
#include <napi.h>

#include <algorithm>
#include <memory>
#include <string>
#include <thread>

#include "addon/async.h"
#include "addon/dtype.h"
#include "quant/convert.h"

namespace pi::addon {
namespace {

// Tensors of weights are far smaller; the limit keeps every product of sizes below 2^53.
constexpr double kMaxElements = 1ull << 40;

// Where the arguments of one call are checked; errors begin with the function's name.
struct Arguments {
  const Napi::CallbackInfo& info;
  const char* function;

  [[noreturn]] void fail(const std::string& problem) const {
    throw Napi::TypeError::New(info.Env(), std::string(function) + ": " + problem);
  }

  Napi::Uint8Array bytes(int i, const char* name) const {
    const Napi::Value value = info[i];
    if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array) {
      fail(std::string(name) + ": expected a Uint8Array");
    }
    return value.As<Napi::Uint8Array>();
  }

  // The first `size` bytes of argument i, or a new array where there is none.
  Napi::Uint8Array output(int i, const char* name, size_t size) const {
    if (info[i].IsUndefined()) return Napi::Uint8Array::New(info.Env(), size);
    const Napi::Uint8Array room = bytes(i, name);
    if (room.ByteLength() < size) {
      fail(std::string(name) + ": expected at least " + std::to_string(size) + " bytes, found " +
           std::to_string(room.ByteLength()));
    }
    return Napi::Uint8Array::New(info.Env(), size, room.ArrayBuffer(), room.ByteOffset());
  }

  quant::Scales scales(int i, const char* name) const {
    if (info[i].IsUndefined()) return quant::Scales::kPlain;
    const std::string rule = info[i].IsString() ? info[i].As<Napi::String>().Utf8Value() : "";
    if (rule != "plain" && rule != "fitted") fail(std::string(name) + ": expected plain or fitted");
    return rule == "plain" ? quant::Scales::kPlain : quant::Scales::kFitted;
  }

  DType dtype(int i, const char* name) const {
    if (!info[i].IsString()) fail(std::string(name) + ": expected a dtype");
    return read_dtype(info.Env(), std::string(function) + ": " + name, info[i].As<Napi::String>());
  }

  size_t size(int i, const char* name) const {
    const double value = info[i].IsNumber() ? info[i].As<Napi::Number>().DoubleValue() : -1;
    if (!(value >= 0 && value <= kMaxElements) || value != static_cast<double>(static_cast<size_t>(value))) {
      fail(std::string(name) + ": expected a size");
    }
    return static_cast<size_t>(value);
  }

  void check_blocks(DType type, const char* name, size_t cols) const {
    if (type == DType::kI32) fail(std::string(name) + ": i32 is no weight type");
    if (type == DType::kBit && name == std::string("from")) fail("from: of a bit only the sign is known");
    if (cols % block_size(type) != 0) {
      fail("a row of " + std::to_string(cols) + " elements is no whole number of blocks of " +
           std::to_string(block_size(type)));
    }
  }

  void check_source(const Napi::Uint8Array& source, DType from, size_t rows, size_t cols) const {
    if (static_cast<double>(rows) * static_cast<double>(cols) > kMaxElements) fail("expected fewer elements");
    const size_t expected = rows * row_bytes(from, cols);
    if (source.ByteLength() != expected) {
      fail("source: expected " + std::to_string(expected) + " bytes, found " + std::to_string(source.ByteLength()));
    }
  }
};

// Starting a thread pays for itself from about a million elements on.
int threads_for(size_t elements) {
  const size_t useful = 1 + (elements >> 20);
  return static_cast<int>(std::clamp<size_t>(std::thread::hardware_concurrency(), 1, std::min<size_t>(useful, 16)));
}

Napi::Value convert_tensor(const Napi::CallbackInfo& info) {
  const Arguments arguments{info, "convertTensor"};
  const Napi::Uint8Array source = arguments.bytes(0, "source");
  const DType from = arguments.dtype(1, "from"), to = arguments.dtype(2, "to");
  const size_t rows = arguments.size(3, "rows"), cols = arguments.size(4, "cols");
  const bool transpose = info[5].ToBoolean();
  const quant::Scales scales = arguments.scales(7, "scales");
  if (!quant::is_float(from)) arguments.fail("from: expected f32, f16 or bf16");
  arguments.check_blocks(to, "to", cols);
  arguments.check_source(source, from, rows, cols);

  auto out = arguments.output(6, "into", rows * row_bytes(to, cols));
  auto kept = std::make_shared<Napi::ObjectReference>(Napi::Persistent(out.As<Napi::Object>()));
  const uint8_t* in_data = source.Data();
  uint8_t* out_data = out.Data();
  return AsyncCall::start(
      info.Env(), {source},
      [=] { quant::convert(in_data, from, out_data, to, rows, cols, transpose, scales, threads_for(rows * cols)); },
      [kept](Napi::Env) { return kept->Value(); });
}

Napi::Value dequantize(const Napi::CallbackInfo& info) {
  const Arguments arguments{info, "dequantize"};
  const Napi::Uint8Array source = arguments.bytes(0, "source");
  const DType from = arguments.dtype(1, "from");
  const size_t rows = arguments.size(2, "rows"), cols = arguments.size(3, "cols");
  arguments.check_blocks(from, "from", cols);
  arguments.check_source(source, from, rows, cols);

  auto out = Napi::Float32Array::New(info.Env(), rows * cols);
  auto kept = std::make_shared<Napi::ObjectReference>(Napi::Persistent(out.As<Napi::Object>()));
  const uint8_t* in_data = source.Data();
  float* out_data = out.Data();
  return AsyncCall::start(
      info.Env(), {source}, [=] { quant::dequantize(in_data, from, out_data, rows, cols, threads_for(rows * cols)); },
      [kept](Napi::Env) { return kept->Value(); });
}

}  // namespace

void register_quant(Napi::Env env, Napi::Object exports) {
  exports.Set("convertTensor", Napi::Function::New(env, convert_tensor));
  exports.Set("dequantize", Napi::Function::New(env, dequantize));
}

}  // namespace pi::addon
