#include "cuda/emulator_device.h"

#include <chrono>
#include <cstdlib>
#include <stdexcept>

#include "cuda/emulator.h"
#include "cuda/emulator_memory.h"
#include "cuda/emulator_queue.h"
#include "cuda/kernels.h"

namespace pi::cuda {

uint64_t device_clock_ns() {
  return static_cast<uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
          .count());
}

namespace emulator {

namespace {

// What it says a context takes, so that who counts memory has something to count.
constexpr size_t kContextBytes = size_t{16} << 20;
constexpr size_t kTotalBytes = size_t{4} << 30;
constexpr size_t kOperationBytes = 1024;  // of a program
// About as many as a stream of CUDA holds before a launch waits for room.
constexpr size_t kQueueLaunches = 1000;

std::string text_setting(const char* name) {
  const char* const text = std::getenv(name);
  return text != nullptr ? text : "";
}

uint64_t setting(const char* name, uint64_t otherwise) {
  const std::string text = text_setting(name);
  return text.empty() ? otherwise : std::strtoull(text.c_str(), nullptr, 10);
}

// Of all devices of the process, for they stand for one.
std::atomic<size_t> used_bytes{0};

// How often an event was reached, and asked for.
struct Reached {
  std::mutex mutex;
  std::condition_variable changed;
  uint64_t times = 0;

  void add() {
    {
      const std::lock_guard lock(mutex);
      ++times;
    }
    changed.notify_all();
  }
};

class EmulatedEvent final : public Event {
 public:
  std::shared_ptr<Reached> reached = std::make_shared<Reached>();
  uint64_t recorded = 0;
};

// Takes memory of the device, as a driver does.
class EmulatedProgram final : public Program {
 public:
  explicit EmulatedProgram(std::vector<WorkQueue::Operation> recorded) : recorded_(std::move(recorded)) {
    used_bytes += bytes();
  }
  ~EmulatedProgram() override { used_bytes -= bytes(); }
  size_t bytes() const { return recorded_.size() * kOperationBytes; }
  size_t operations() const override { return recorded_.size(); }
  const std::vector<WorkQueue::Operation>& recorded() const { return recorded_; }

 private:
  std::vector<WorkQueue::Operation> recorded_;
};

class EmulatedDevice final : public Device {
 public:
  explicit EmulatedDevice(const Kernels& kernels)
      : kernels_(kernels), seed_(setting("PI_EMULATOR_SEED", 0)), failing_(text_setting("PI_EMULATOR_FAIL")) {
    info_.name = "emulated device";
    info_.backend = "emulated";
    info_.compute_major = 7;
    info_.compute_minor = 5;
    info_.multiprocessors = 4;
    info_.total_bytes = setting("PI_EMULATOR_MEMORY", kTotalBytes);
    info_.context_bytes = std::min(kContextBytes, info_.total_bytes);
    info_.free_bytes = info_.total_bytes - info_.context_bytes;
  }
  ~EmulatedDevice() override {
    closing_ = true;
    used_bytes -= memory_.used();
  }

  const DeviceInfo& info() const override { return info_; }
  size_t free_bytes() const override { return info_.free_bytes - std::min(info_.free_bytes, used_bytes.load()); }

  void* allocate(size_t bytes) override {
    expect_idle("allocate");
    void* const memory = bytes > free_bytes() ? nullptr : memory_.allocate(bytes, 0xff);
    if (memory != nullptr) used_bytes += bytes;
    return memory;
  }
  void free(void* memory) noexcept override {
    const size_t before = memory_.used();
    release("free", memory_, memory);
    used_bytes -= before - memory_.used();
  }
  void* allocate_host(size_t bytes) override {
    expect_idle("allocate_host");
    return host_.allocate(bytes, 0);
  }
  void free_host(void* memory) noexcept override { release("free_host", host_, memory); }

  void upload(Queue queue, void* device, const void* host, size_t bytes) override {
    fault_.rethrow();
    expect_range("upload", memory_, device, bytes);
    expect_range("upload", host_, host, bytes);
    push(queue, [=](Grid&) { std::memcpy(device, host, bytes); });
  }
  void download(Queue queue, void* host, const void* device, size_t bytes) override {
    fault_.rethrow();
    expect_range("download", memory_, device, bytes);
    expect_range("download", host_, host, bytes);
    push(queue, [=](Grid&) { std::memcpy(host, device, bytes); });
  }
  void zero(Queue queue, void* device, size_t bytes) override {
    fault_.rethrow();
    expect_range("zero", memory_, device, bytes);
    push(queue, [=](Grid&) { std::memset(device, 0, bytes); });
  }

  std::unique_ptr<Event> event() override {
    fault_.rethrow();
    return std::make_unique<EmulatedEvent>();
  }
  void record(Queue queue, Event& event) override {
    expect_no_recording("record", queue);
    fault_.rethrow();
    expect_accepted();
    EmulatedEvent& of = static_cast<EmulatedEvent&>(event);
    ++of.recorded;
    at(queue).push({[reached = of.reached](Grid&) { reached->add(); }, true});
  }
  void wait(Queue queue, Event& event) override {
    expect_no_recording("wait", queue);
    fault_.rethrow();
    EmulatedEvent& of = static_cast<EmulatedEvent&>(event);
    at(queue).push({[reached = of.reached, times = of.recorded](Grid&) {
                      std::unique_lock lock(reached->mutex);
                      reached->changed.wait(lock, [&] { return reached->times >= times; });
                    },
                    true});
  }
  bool done(Event& event) override {
    expect_no_recording("done", Queue::kCompute);
    EmulatedEvent& of = static_cast<EmulatedEvent&>(event);
    const std::lock_guard lock(of.reached->mutex);
    return of.reached->times >= of.recorded;
  }
  void synchronize(Queue queue) override {
    expect_no_recording("synchronize", queue);
    at(queue).synchronize();
    expect_accepted();
    fault_.rethrow();
    for (GuardedMemory* memory : {&memory_, &host_}) {
      const std::string wrong = memory->check();
      if (wrong.empty()) continue;
      fault_.set(wrong);
      fault_.rethrow();
    }
  }

  void begin_recording() override {
    expect_idle("begin_recording");
    compute_.begin_recording();
  }
  std::unique_ptr<Program> end_recording() override {
    if (!compute_.recording()) throw std::runtime_error("emulated device: end_recording: nothing is recorded");
    std::vector<WorkQueue::Operation> recorded = compute_.end_recording();
    expect_accepted();
    if (recorded.size() * kOperationBytes > free_bytes())
      throw std::runtime_error("emulated device: end_recording: out of memory");
    return std::make_unique<EmulatedProgram>(std::move(recorded));
  }
  void launch(Program& program) override {
    expect_idle("launch");
    compute_.push(static_cast<EmulatedProgram&>(program).recorded());
  }

  const Kernels& kernels() const override { return kernels_; }
  void* stream() const override { return const_cast<EmulatedDevice*>(this); }

  void enqueue(Launch launch) {
    std::string wrong = refusal(launch);
    if (++asked_ == refusing_) wrong = std::string("kernel ") + launch.kernel + ": refused, as PI_EMULATOR_REFUSE says";
    if (!wrong.empty()) {
      if (refused_.empty()) refused_ = wrong;
      return;
    }
    push(Queue::kCompute, [this, launch = std::make_shared<const Launch>(std::move(launch))](Grid& grid) {
      static std::mutex one_at_a_time;  // of all devices
      const std::lock_guard lock(one_at_a_time);
      const bool fails = std::to_string(++launched_) == failing_ || launch->kernel == failing_;
      const std::string wrong =
          fails ? std::string("kernel ") + launch->kernel + ": fails, as PI_EMULATOR_FAIL says" : grid.run(*launch);
      if (!wrong.empty()) fault_.set(wrong);
    });
  }

 private:
  WorkQueue& at(Queue queue) { return queue == Queue::kCompute ? compute_ : copy_; }
  void push(Queue queue, std::function<void(Grid&)> work) { at(queue).push({std::move(work), false}); }

  // What is wrong with the memory shows at the next call, for a destructor cannot tell.
  void release(const char* call, GuardedMemory& memory, void* piece) noexcept {
    if (compute_.recording()) fault_.set(std::string(call) + " cannot be recorded");
    const std::string wrong = piece != nullptr ? memory.free(piece) : "";
    if (!wrong.empty()) fault_.set(wrong);
  }
  void expect_accepted() {
    if (!refused_.empty()) throw std::runtime_error("emulated device: " + std::exchange(refused_, {}));
  }
  void expect_idle(const char* call) {
    fault_.rethrow();
    expect_no_recording(call, Queue::kCompute);
  }
  static void expect_range(const char* call, GuardedMemory& memory, const void* begin, size_t bytes) {
    if (memory.contains(begin, bytes)) return;
    throw std::runtime_error("emulated device: " + std::string(call) + ": " + std::to_string(bytes) +
                             " bytes that are not in one piece of " + memory.what());
  }
  void expect_no_recording(const char* call, Queue queue) {
    if (queue == Queue::kCompute && compute_.recording()) {
      throw std::runtime_error("emulated device: " + std::string(call) + " cannot be recorded");
    }
  }

  const Kernels& kernels_;
  DeviceInfo info_;
  uint64_t seed_;
  std::string failing_;
  uint64_t launched_ = 0;  // kernels, on the queue's thread
  uint64_t refusing_ = setting("PI_EMULATOR_REFUSE", 0), asked_ = 0;
  std::string refused_;  // the first launch that was, until somebody asks
  Fault fault_;
  std::atomic<bool> closing_{false};
  mutable GuardedMemory memory_{"device memory"}, host_{"page-locked memory"};
  const size_t most_ = setting("PI_EMULATOR_QUEUE", kQueueLaunches);
  WorkQueue compute_{fault_, closing_, seed_, most_}, copy_{fault_, closing_, seed_, most_};  // last: ended first
};

}  // namespace

void enqueue(void* stream, Launch launch) { static_cast<EmulatedDevice*>(stream)->enqueue(std::move(launch)); }

std::unique_ptr<Device> make_device(const Kernels& kernels) { return std::make_unique<EmulatedDevice>(kernels); }

}  // namespace emulator

}  // namespace pi::cuda
