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
      std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count());
}

namespace emulator {

namespace {

// What it says a context takes, so that who counts memory has something to count.
constexpr size_t kContextBytes = size_t{16} << 20;
constexpr size_t kTotalBytes = size_t{4} << 30;

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

class EmulatedProgram final : public Program {
 public:
  explicit EmulatedProgram(std::vector<WorkQueue::Operation> recorded) : recorded_(std::move(recorded)) {}
  size_t operations() const override { return recorded_.size(); }
  const std::vector<WorkQueue::Operation>& recorded() const { return recorded_; }

 private:
  std::vector<WorkQueue::Operation> recorded_;
};

class EmulatedDevice final : public Device {
 public:
  explicit EmulatedDevice(const Kernels& kernels) : kernels_(kernels), seed_(setting("PI_EMULATOR_SEED", 0)), failing_(text_setting("PI_EMULATOR_FAIL")) {
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
    void* const memory = bytes > free_bytes() ? nullptr : memory_.allocate(bytes, 0xff);
    if (memory != nullptr) used_bytes += bytes;
    return memory;
  }
  void free(void* memory) override {
    const size_t before = memory_.used();
    const std::string wrong = memory != nullptr ? memory_.free(memory) : "";
    used_bytes -= before - memory_.used();
    expect_none(wrong);
  }
  void* allocate_host(size_t bytes) override { return host_.allocate(bytes, 0); }
  void free_host(void* memory) override { expect_none(memory != nullptr ? host_.free(memory) : ""); }

  void upload(Queue queue, void* device, const void* host, size_t bytes) override {
    expect_range("upload", memory_, device, bytes);
    expect_range("upload", host_, host, bytes);
    push(queue, [=](Grid&) { std::memcpy(device, host, bytes); });
  }
  void download(Queue queue, void* host, const void* device, size_t bytes) override {
    expect_range("download", memory_, device, bytes);
    expect_range("download", host_, host, bytes);
    push(queue, [=](Grid&) { std::memcpy(host, device, bytes); });
  }
  void zero(Queue queue, void* device, size_t bytes) override {
    expect_range("zero", memory_, device, bytes);
    push(queue, [=](Grid&) { std::memset(device, 0, bytes); });
  }

  std::unique_ptr<Event> event() override { return std::make_unique<EmulatedEvent>(); }
  void record(Queue queue, Event& event) override {
    expect_no_recording("record", queue);
    EmulatedEvent& of = static_cast<EmulatedEvent&>(event);
    ++of.recorded;
    at(queue).push({[reached = of.reached](Grid&) { reached->add(); }, true});
  }
  void wait(Queue queue, Event& event) override {
    expect_no_recording("wait", queue);
    EmulatedEvent& of = static_cast<EmulatedEvent&>(event);
    at(queue).push({[reached = of.reached, times = of.recorded](Grid&) {
                      std::unique_lock lock(reached->mutex);
                      reached->changed.wait(lock, [&] { return reached->times >= times; });
                    },
                    true});
  }
  bool done(Event& event) override {
    EmulatedEvent& of = static_cast<EmulatedEvent&>(event);
    const std::lock_guard lock(of.reached->mutex);
    return of.reached->times >= of.recorded;
  }
  void synchronize(Queue queue) override {
    expect_no_recording("synchronize", queue);
    at(queue).synchronize();
    fault_.rethrow();
    for (GuardedMemory* memory : {&memory_, &host_}) {
      const std::string wrong = memory->check();
      if (wrong.empty()) continue;
      fault_.set(wrong);
      fault_.rethrow();
    }
  }

  void begin_recording() override {
    expect_no_recording("begin_recording", Queue::kCompute);
    compute_.begin_recording();
  }
  std::unique_ptr<Program> end_recording() override {
    if (!compute_.recording()) throw std::runtime_error("emulated device: end_recording: nothing is recorded");
    return std::make_unique<EmulatedProgram>(compute_.end_recording());
  }
  void launch(Program& program) override {
    expect_no_recording("launch", Queue::kCompute);
    for (const WorkQueue::Operation& operation : static_cast<EmulatedProgram&>(program).recorded()) compute_.push(operation);
  }

  const Kernels& kernels() const override { return kernels_; }
  void* stream() const override { return const_cast<EmulatedDevice*>(this); }

  void enqueue(Launch launch) {
    push(Queue::kCompute, [this, launch = std::make_shared<const Launch>(std::move(launch))](Grid& grid) {
      static std::mutex one_at_a_time;  // of all devices
      const std::lock_guard lock(one_at_a_time);
      const bool fails = std::to_string(++launched_) == failing_ || launch->kernel == failing_;
      const std::string wrong = fails ? std::string("kernel ") + launch->kernel + ": fails, as PI_EMULATOR_FAIL says" : grid.run(*launch);
      if (!wrong.empty()) fault_.set(wrong);
    });
  }

 private:
  WorkQueue& at(Queue queue) { return queue == Queue::kCompute ? compute_ : copy_; }
  void push(Queue queue, std::function<void(Grid&)> work) { at(queue).push({std::move(work), false}); }

  static void expect_none(const std::string& wrong) {
    if (!wrong.empty()) throw std::runtime_error("emulated device: " + wrong);
  }
  static void expect_range(const char* call, GuardedMemory& memory, const void* begin, size_t bytes) {
    if (memory.contains(begin, bytes)) return;
    throw std::runtime_error("emulated device: " + std::string(call) + ": " + std::to_string(bytes) + " bytes that are not in one piece of " +
                             memory.what());
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
  Fault fault_;
  std::atomic<bool> closing_{false};
  mutable GuardedMemory memory_{"device memory"}, host_{"page-locked memory"};
  WorkQueue compute_{fault_, closing_, seed_}, copy_{fault_, closing_, seed_};  // last: ended first
};

}  // namespace

void enqueue(void* stream, Launch launch) { static_cast<EmulatedDevice*>(stream)->enqueue(std::move(launch)); }

std::unique_ptr<Device> make_device(const Kernels& kernels) { return std::make_unique<EmulatedDevice>(kernels); }

}  // namespace emulator

}  // namespace pi::cuda
