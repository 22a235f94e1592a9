// Checked access to JavaScript arguments. Errors name the argument, what was expected and what came.
#pragma once

#include <napi.h>

#include <string>

namespace pi::addon {

[[noreturn]] inline void fail(Napi::Env env, const std::string& message) { throw Napi::TypeError::New(env, message); }

// A typed array's elements; `data` stays valid while the JavaScript object does.
template <typename T>
struct Array {
  const T* data = nullptr;
  size_t size = 0;
};

template <typename T>
constexpr napi_typedarray_type array_type();
template <>
constexpr napi_typedarray_type array_type<int32_t>() {
  return napi_int32_array;
}
template <>
constexpr napi_typedarray_type array_type<uint8_t>() {
  return napi_uint8_array;
}
template <>
constexpr napi_typedarray_type array_type<uint16_t>() {
  return napi_uint16_array;
}
template <>
constexpr napi_typedarray_type array_type<float>() {
  return napi_float32_array;
}
template <>
constexpr napi_typedarray_type array_type<double>() {
  return napi_float64_array;
}

template <typename T>
Array<T> array(const Napi::Value& value, const char* name) {
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != array_type<T>()) {
    fail(value.Env(), std::string(name) + ": expected a typed array of its declared type");
  }
  auto typed = value.As<Napi::TypedArrayOf<T>>();
  return {typed.Data(), typed.ElementLength()};
}

template <typename T>
Array<T> array(const Napi::Value& value, const char* name, size_t expected) {
  const Array<T> found = array<T>(value, name);
  if (found.size != expected) {
    fail(value.Env(),
         std::string(name) + ": expected " + std::to_string(expected) + " elements, got " + std::to_string(found.size));
  }
  return found;
}

// The same for a member of an object.
template <typename T, typename... Expected>
Array<T> array(const Napi::Object& from, const char* name, Expected... expected) {
  return array<T>(Napi::Value(from.Get(name)), name, expected...);
}

inline double number(const Napi::Object& from, const char* name) {
  const Napi::Value value = from.Get(name);
  if (!value.IsNumber()) fail(from.Env(), std::string(name) + ": expected a number");
  return value.As<Napi::Number>().DoubleValue();
}

inline int integer(const Napi::Object& from, const char* name, double low, double high) {
  const double value = number(from, name);
  if (!(value >= low && value <= high) || value != static_cast<double>(static_cast<int64_t>(value))) {
    fail(from.Env(), std::string(name) + ": expected an integer from " + std::to_string(static_cast<int64_t>(low)) +
                         " to " + std::to_string(static_cast<int64_t>(high)) + ", got " + std::to_string(value));
  }
  return static_cast<int>(value);
}

inline bool flag(const Napi::Object& from, const char* name) { return from.Get(name).ToBoolean().Value(); }

inline std::string text(const Napi::Object& from, const char* name) {
  const Napi::Value value = from.Get(name);
  if (!value.IsString()) fail(from.Env(), std::string(name) + ": expected a string");
  return value.As<Napi::String>().Utf8Value();
}

inline Napi::Object object(const Napi::Object& from, const char* name) {
  const Napi::Value value = from.Get(name);
  if (!value.IsObject()) fail(from.Env(), std::string(name) + ": expected an object");
  return value.As<Napi::Object>();
}

// A new typed array with a copy of `n` elements.
template <typename T>
Napi::TypedArrayOf<T> copy_array(Napi::Env env, const T* data, size_t n) {
  auto out = Napi::TypedArrayOf<T>::New(env, n);
  if (n > 0) std::memcpy(out.Data(), data, n * sizeof(T));
  return out;
}

}  // namespace pi::addon
