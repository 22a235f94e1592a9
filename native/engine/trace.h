// What both devices did when, for a picture of a step.
#pragma once

#include <chrono>
#include <cstdint>
#include <utility>
#include <vector>

namespace pi {

struct TraceSpan {
  bool gpu;
  int layer;          // -1: of no layer
  const char* name;   // a literal
  double begin, end;  // seconds of Trace::now
};

class Trace {
 public:
  static double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  }

  void add(bool gpu, int layer, const char* name, double begin, double end) {
    spans_.push_back({gpu, layer, name, begin, end});
  }
  std::vector<TraceSpan> take() { return std::exchange(spans_, {}); }

 private:
  std::vector<TraceSpan> spans_;
};

}  // namespace pi
