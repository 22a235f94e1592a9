// A bench's `run`, as a program's main: what it throws is its last line.
#pragma once

#include <cstdio>
#include <exception>

#define PI_BENCH_MAIN(run)                        \
  int main(int argc, char** argv) {               \
    try {                                         \
      return run(argc, argv);                     \
    } catch (const std::exception& error) {       \
      std::fprintf(stderr, "%s\n", error.what()); \
      return 1;                                   \
    }                                             \
  }
