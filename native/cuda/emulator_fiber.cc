#include "cuda/emulator_fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstring>
#include <new>

// Sanitizers keep books of their own for every stack, and are told of each switch. GCC says by a macro which is on,
// Clang by a feature.
#if defined(__has_feature)
#if __has_feature(address_sanitizer) && !defined(__SANITIZE_ADDRESS__)
#define __SANITIZE_ADDRESS__
#endif
#if __has_feature(thread_sanitizer) && !defined(__SANITIZE_THREAD__)
#define __SANITIZE_THREAD__
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <pthread.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define PI_ASAN(...) __VA_ARGS__
#else
#define PI_ASAN(...)
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#define PI_TSAN(...) __VA_ARGS__
#else
#define PI_TSAN(...)
#endif

// Other machines use ucontext, which asks the system at every switch; -DPI_UCONTEXT to try it here.
#if !defined(__x86_64__) && !defined(__aarch64__) && !defined(PI_UCONTEXT)
#define PI_UCONTEXT
#endif
#if defined(PI_UCONTEXT)
#include <ucontext.h>
#endif

namespace pi::cuda::emulator {

namespace {

constexpr size_t kPage = 64 << 10;  // of any machine, or a multiple
constexpr size_t kColours = 128, kColourBytes = 512;
constexpr size_t kMemory = kPage + 2 * Fiber::kStackBytes + kColours * kColourBytes;
constexpr uint64_t kUntouched = 0x7069207374616bull;
constexpr int kMarks = 8;  // one line

uint64_t* marks(char* top) { return reinterpret_cast<uint64_t*>(top - Fiber::kStackBytes) - kMarks; }

}  // namespace

}  // namespace pi::cuda::emulator

// void pi_fiber_switch(void** save, void* load): keeps what the calling convention says a callee keeps.
#if defined(__APPLE__)
#define PI_SYMBOL "_pi_fiber_switch"
#else
#define PI_SYMBOL "pi_fiber_switch"
#endif
#if defined(PI_UCONTEXT)
#elif defined(__x86_64__)
asm(".text\n.p2align 4\n.globl " PI_SYMBOL "\n" PI_SYMBOL
    ":\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n  ret\n");
#elif defined(__aarch64__)
asm(".text\n.p2align 4\n.globl " PI_SYMBOL "\n" PI_SYMBOL
    ":\n"
    "  sub sp, sp, #160\n"
    "  stp x19, x20, [sp]\n  stp x21, x22, [sp, #16]\n  stp x23, x24, [sp, #32]\n  stp x25, x26, [sp, #48]\n"
    "  stp x27, x28, [sp, #64]\n  stp x29, x30, [sp, #80]\n"
    "  stp d8, d9, [sp, #96]\n  stp d10, d11, [sp, #112]\n  stp d12, d13, [sp, #128]\n  stp d14, d15, [sp, #144]\n"
    "  mov x9, sp\n  str x9, [x0]\n  mov sp, x1\n"
    "  ldp x19, x20, [sp]\n  ldp x21, x22, [sp, #16]\n  ldp x23, x24, [sp, #32]\n  ldp x25, x26, [sp, #48]\n"
    "  ldp x27, x28, [sp, #64]\n  ldp x29, x30, [sp, #80]\n"
    "  ldp d8, d9, [sp, #96]\n  ldp d10, d11, [sp, #112]\n  ldp d12, d13, [sp, #128]\n  ldp d14, d15, [sp, #144]\n"
    "  add sp, sp, #160\n  ret\n");
#endif

#if !defined(PI_UCONTEXT)
extern "C" __attribute__((visibility("hidden"))) void pi_fiber_switch(void** save, void* load);
#endif

namespace pi::cuda::emulator {

namespace {

#if !defined(PI_UCONTEXT)
// What pi_fiber_switch finds when it first enters a stack: registers of zero and `body` to return to.
void* first_frame(char* top, void (*body)()) {
  constexpr int kWords = 20;  // as many as either machine keeps
  uint64_t* const frame = reinterpret_cast<uint64_t*>(top) - kWords - 2;
  std::memset(frame, 0, (kWords + 2) * sizeof(uint64_t));
  const uint64_t entry = reinterpret_cast<uint64_t>(body);
#if defined(__x86_64__)
  uint64_t* const pointer = frame + kWords - 6;  // six registers, the entry, and the word that `call` would have pushed
  pointer[6] = entry;
  return pointer;
#else
  frame[11] = entry;  // x30
  return frame;
#endif
}
#else
void pi_fiber_switch(void** save, void* load) {
  if (*save == nullptr) *save = new ucontext_t;
  swapcontext(static_cast<ucontext_t*>(*save), static_cast<ucontext_t*>(load));
}
#endif

PI_ASAN(void find_thread_stack(const void*& bottom, size_t& size) {
  pthread_attr_t attributes;
  void* begin = nullptr;
  ::pthread_getattr_np(::pthread_self(), &attributes);
  ::pthread_attr_getstack(&attributes, &begin, &size);
  ::pthread_attr_destroy(&attributes);
  bottom = begin;
})

}  // namespace

Fiber::Fiber(void (*body)(), size_t colour) {
  void* const memory =
      ::mmap(nullptr, kMemory, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  ::mprotect(memory, kPage, PROT_NONE);
  memory_ = static_cast<char*>(memory);
  top_ = memory_ + kMemory - colour % kColours * kColourBytes;
  bottom_ = memory_ + kPage;
  size_ = static_cast<size_t>(top_ - memory_) - kPage;
  for (int i = 0; i < kMarks; ++i) marks(top_)[i] = kUntouched;
#if !defined(PI_UCONTEXT)
  saved_ = first_frame(top_, body);
#else
  ucontext_t* const context = new ucontext_t;
  getcontext(context);
  context->uc_stack.ss_sp = memory_ + kPage;
  context->uc_stack.ss_size = size_;
  context->uc_link = nullptr;
  makecontext(context, body, 0);
  saved_ = context;
#endif
}

Fiber::~Fiber() {
#if defined(PI_UCONTEXT)
  delete static_cast<ucontext_t*>(saved_);
#endif
  if (memory_ == nullptr) return;
  PI_ASAN(__asan_unpoison_memory_region(memory_, kMemory);)
  ::munmap(memory_, kMemory);
}

void Fiber::entered() { PI_ASAN(__sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);) }

void Fiber::leave_to(Fiber& to) {
  PI_ASAN(if (bottom_ == nullptr) find_thread_stack(bottom_, size_); void* fake = nullptr;
          __sanitizer_start_switch_fiber(&fake, to.bottom_, to.size_);)
  // To ThreadSanitizer all that runs until the OS thread is itself again is one thread: those that run in turns, on one
  // core, have no races, and a clock for each of a thousand would take most of the time.
  PI_TSAN(const bool home = memory_ == nullptr; void* const others = home ? __tsan_create_fiber(0) : nullptr;
          if (home) sanitizer_ = __tsan_get_current_fiber();
          if (home || to.memory_ == nullptr) __tsan_switch_to_fiber(home ? others : to.sanitizer_, 0);)
  pi_fiber_switch(&saved_, to.saved_);
  PI_ASAN(__sanitizer_finish_switch_fiber(fake, nullptr, nullptr);)
  PI_TSAN(if (home) __tsan_destroy_fiber(others);)
}

bool Fiber::overflowed() const {
  if (memory_ == nullptr) return false;
  for (int i = 0; i < kMarks; ++i) {
    if (marks(top_)[i] != kUntouched) return true;
  }
  return false;
}

}  // namespace pi::cuda::emulator
