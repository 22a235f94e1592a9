// A stack of its own to run on, left and entered by a few instructions: no system call, no signal mask.
#pragma once

#include <cstddef>

// Of functions that are left on one fiber and gone on with much later: ThreadSanitizer counts calls and returns, which
// must be as many between two times that an OS thread is itself.
#if defined(__has_attribute)
#if __has_attribute(disable_sanitizer_instrumentation)
#define PI_UNCOUNTED __attribute__((disable_sanitizer_instrumentation))
#endif
#endif
#if !defined(PI_UNCOUNTED)
#define PI_UNCOUNTED __attribute__((no_sanitize_thread))
#endif

namespace pi::cuda::emulator {

class Fiber {
 public:
  // What a fiber's thread may use; beyond it lies as much again, so that one that used more can be told before it did
  // harm.
  static constexpr size_t kStackBytes = 128 << 10;

  // The fiber that the calling OS thread is when it enters its first one.
  Fiber() = default;
  // One that calls `body` when it is first entered. `body` never returns. Stacks of other `colour`s begin at other sets
  // of the caches: what is in use of a thousand of them is a few lines each.
  Fiber(void (*body)(), size_t colour);
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // What `body` calls first.
  static void entered();

  // Leaves this fiber, which must be the running one, and enters `to`. Returns when somebody enters this one again.
  PI_UNCOUNTED void leave_to(Fiber& to);
  // Whether more than kStackBytes have been in use.
  bool overflowed() const;

 private:
  void* saved_ = nullptr;   // its stack pointer, or its ucontext
  char* memory_ = nullptr;  // null: the OS thread's own stack
  char* top_ = nullptr;
  const void* bottom_ = nullptr;  // of its stack, for AddressSanitizer
  size_t size_ = 0;
  void* sanitizer_ = nullptr;  // of an OS thread: what ThreadSanitizer knows it by
};

}  // namespace pi::cuda::emulator
