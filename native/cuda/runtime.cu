// A device of CUDA's runtime, and the entry of pi_cuda.
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>

#include "cuda/language.h"
#include "cuda/launchers.h"
#include "cuda/module.h"

namespace pi::cuda {

namespace {

// The oldest generation that the kernels are compiled for.
constexpr int kLeastMajor = 7, kLeastMinor = 5;

std::string message(const std::string& call, cudaError_t status) {
  return call + ": " + cudaGetErrorString(status) + " (" + cudaGetErrorName(status) + ")";
}

void check(const char* call, cudaError_t status) {
  if (status == cudaSuccess) return;
  (void)cudaGetLastError();  // it is told here, and not to be found by the next launch
  throw std::runtime_error(message(call, status));
}

// Names the call of a failure as it is written.
#define PI_CHECK(call) check(#call, call)

// The first launch that failed, until somebody asks.
class FailedLaunch {
 public:
  void note(const char* kernel, cudaError_t status) {
    const std::lock_guard lock(mutex_);
    if (what_.empty()) what_ = message(std::string("at the launch of kernel ") + kernel, status);
  }
  std::string take() {
    const std::lock_guard lock(mutex_);
    return std::exchange(what_, {});
  }

 private:
  std::mutex mutex_;
  std::string what_;
};

FailedLaunch& failed_launch() {
  static FailedLaunch failed;
  return failed;
}

// Bytes of a device in use by everybody, asked of the driver's management library, which needs no context; negative
// where there is none.
class Management {
 public:
  Management() : library_(::dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL)) {
    const auto init = find<int()>("nvmlInit_v2");
    if (init == nullptr || init() != 0) close();
  }
  ~Management() {
    if (const auto end = find<int()>("nvmlShutdown")) end();
    close();
  }
  Management(const Management&) = delete;
  Management& operator=(const Management&) = delete;

  int64_t used(const char* bus_id) const {
    struct {
      unsigned long long total, free, used;
    } memory{};
    void* device = nullptr;
    const auto handle = find<int(const char*, void**)>("nvmlDeviceGetHandleByPciBusId_v2");
    const auto info = find<int(void*, void*)>("nvmlDeviceGetMemoryInfo");
    if (handle == nullptr || info == nullptr || handle(bus_id, &device) != 0 || info(device, &memory) != 0) return -1;
    return static_cast<int64_t>(memory.used);
  }

 private:
  template <typename Function>
  Function* find(const char* name) const {
    return library_ != nullptr ? reinterpret_cast<Function*>(::dlsym(library_, name)) : nullptr;
  }
  void close() {
    if (library_ != nullptr) ::dlclose(library_);
    library_ = nullptr;
  }
  void* library_;
};

// A process has one context a device, made when that is first opened: what it took then.
size_t first_context(int ordinal, size_t bytes) {
  static std::mutex mutex;
  static std::map<int, size_t> contexts;
  const std::lock_guard lock(mutex);
  return contexts.try_emplace(ordinal, bytes).first->second;
}

class CudaEvent final : public Event {
 public:
  CudaEvent() { PI_CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming)); }
  ~CudaEvent() override { (void)cudaEventDestroy(event); }
  cudaEvent_t event = nullptr;
};

class CudaProgram final : public Program {
 public:
  explicit CudaProgram(cudaGraph_t graph) {
    const cudaError_t counted = cudaGraphGetNodes(graph, nullptr, &operations_);
    const cudaError_t status = cudaGraphInstantiate(&program, graph, 0);
    (void)cudaGraphDestroy(graph);
    check("cudaGraphGetNodes", counted);
    check("cudaGraphInstantiate", status);
  }
  ~CudaProgram() override { (void)cudaGraphExecDestroy(program); }
  size_t operations() const override { return operations_; }
  cudaGraphExec_t program = nullptr;

 private:
  size_t operations_ = 0;
};

class CudaDevice final : public Device {
 public:
  explicit CudaDevice(int ordinal) : ordinal_(ordinal) {
    char bus_id[32] = "";
    PI_CHECK(cudaDeviceGetPCIBusId(bus_id, sizeof bus_id, ordinal_));
    const Management management;
    const int64_t before = management.used(bus_id);
    use();
    PI_CHECK(cudaStreamCreateWithFlags(&streams_[0], cudaStreamNonBlocking));
    PI_CHECK(cudaStreamCreateWithFlags(&streams_[1], cudaStreamNonBlocking));
    run_once();
    describe();
    const int64_t after = management.used(bus_id);
    // Unknown: as if everything in use were ours.
    const bool known = before >= 0 && after >= before;
    info_.context_bytes =
        first_context(ordinal_, known ? static_cast<size_t>(after - before) : info_.total_bytes - info_.free_bytes);
  }
  ~CudaDevice() override {
    (void)cudaSetDevice(ordinal_);
    for (cudaStream_t stream : streams_) (void)cudaStreamDestroy(stream);
  }

  const DeviceInfo& info() const override { return info_; }
  size_t free_bytes() const override {
    use();
    size_t free = 0, total = 0;
    PI_CHECK(cudaMemGetInfo(&free, &total));
    return free;
  }

  void* allocate(size_t bytes) override {
    use();
    void* memory = nullptr;
    return got("cudaMalloc", cudaMalloc(&memory, std::max<size_t>(bytes, 1))) ? memory : nullptr;
  }
  void free(void* memory) noexcept override {
    (void)cudaSetDevice(ordinal_);
    if (cudaFree(memory) != cudaSuccess) (void)cudaGetLastError();
  }
  void* allocate_host(size_t bytes) override {
    use();
    void* memory = nullptr;
    if (!got("cudaHostAlloc",
             cudaHostAlloc(&memory, std::max<size_t>(bytes, 1), cudaHostAllocMapped | cudaHostAllocPortable)))
      return nullptr;
    return std::memset(memory, 0, bytes);
  }
  void free_host(void* memory) noexcept override {
    (void)cudaSetDevice(ordinal_);
    if (cudaFreeHost(memory) != cudaSuccess) (void)cudaGetLastError();
  }

  void upload(Queue queue, void* device, const void* host, size_t bytes) override {
    use();
    PI_CHECK(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, at(queue)));
  }
  void download(Queue queue, void* host, const void* device, size_t bytes) override {
    use();
    PI_CHECK(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, at(queue)));
  }
  void zero(Queue queue, void* device, size_t bytes) override {
    use();
    PI_CHECK(cudaMemsetAsync(device, 0, bytes, at(queue)));
  }

  std::unique_ptr<Event> event() override {
    use();
    return std::make_unique<CudaEvent>();
  }
  void record(Queue queue, Event& event) override {
    expect_no_recording("record", queue);
    use();
    expect_launched();
    PI_CHECK(cudaEventRecord(static_cast<CudaEvent&>(event).event, at(queue)));
  }
  void wait(Queue queue, Event& event) override {
    expect_no_recording("wait", queue);
    use();
    PI_CHECK(cudaStreamWaitEvent(at(queue), static_cast<CudaEvent&>(event).event, 0));
  }
  // After an error nothing is waited for: synchronize tells. That it is not done yet is no error, but HIP keeps it as
  // the last one, which the next launch would find.
  bool done(Event& event) override {
    (void)cudaSetDevice(ordinal_);
    if (cudaEventQuery(static_cast<CudaEvent&>(event).event) != cudaErrorNotReady) return true;
    (void)cudaGetLastError();
    return false;
  }
  void synchronize(Queue queue) override {
    expect_no_recording("synchronize", queue);
    use();
    const cudaError_t status = cudaStreamSynchronize(at(queue));
    expect_launched();
    check("cudaStreamSynchronize", status);
  }

  void begin_recording() override {
    expect_no_recording("begin_recording", Queue::kCompute);
    use();
    PI_CHECK(cudaStreamBeginCapture(at(Queue::kCompute), cudaStreamCaptureModeThreadLocal));
    recording_ = true;
  }
  std::unique_ptr<Program> end_recording() override {
    if (!recording_) throw std::runtime_error("end_recording: nothing is recorded");
    recording_ = false;
    cudaGraph_t graph = nullptr;
    const cudaError_t status = cudaStreamEndCapture(at(Queue::kCompute), &graph);
    const std::string failed = failed_launch().take();
    if (!failed.empty()) {
      if (graph != nullptr) (void)cudaGraphDestroy(graph);
      throw std::runtime_error(failed);
    }
    check("cudaStreamEndCapture", status);
    auto program = std::make_unique<CudaProgram>(graph);
    // What it takes of device memory, it takes now.
    PI_CHECK(cudaGraphUpload(program->program, at(Queue::kCompute)));
    PI_CHECK(cudaStreamSynchronize(at(Queue::kCompute)));
    return program;
  }
  void launch(Program& program) override {
    expect_no_recording("launch", Queue::kCompute);
    use();
    PI_CHECK(cudaGraphLaunch(static_cast<CudaProgram&>(program).program, at(Queue::kCompute)));
  }

  const Kernels& kernels() const override { return launchers(); }
  void* stream() const override {
    use();
    return at(Queue::kCompute);
  }

 private:
  cudaStream_t at(Queue queue) const { return streams_[static_cast<int>(queue)]; }
  // The current device is the calling thread's, and threads change between calls.
  void use() const { PI_CHECK(cudaSetDevice(ordinal_)); }

  static bool got(const char* call, cudaError_t status) {
    if (status != cudaErrorMemoryAllocation) check(call, status);
    if (status != cudaSuccess) (void)cudaGetLastError();  // it is not to be found by the next launch
    return status == cudaSuccess;
  }
  // Who comes later may wait for what that launch should have done.
  static void expect_launched() {
    const std::string failed = failed_launch().take();
    if (!failed.empty()) throw std::runtime_error(failed);
  }
  void expect_no_recording(const char* call, Queue queue) const {
    if (recording_ && queue == Queue::kCompute) throw std::runtime_error(std::string(call) + " cannot be recorded");
  }

  // A kernel, so that what the runtime makes at the first one is there when memory is counted, and a module without
  // code for this GPU is told now.
  void run_once() {
    uint64_t* const word = static_cast<uint64_t*>(allocate_host(sizeof(uint64_t)));
    if (word == nullptr) throw std::runtime_error("cudaHostAlloc: no page-locked memory");
    stamp(stream(), {word});
    synchronize(Queue::kCompute);
    free_host(word);
  }

  void describe() {
    cudaDeviceProp properties{};
    PI_CHECK(cudaGetDeviceProperties(&properties, ordinal_));
    info_.name = properties.name;
    info_.backend = kBackend;
    info_.compute_major = properties.major;
    info_.compute_minor = properties.minor;
    info_.multiprocessors = properties.multiProcessorCount;
    PI_CHECK(cudaMemGetInfo(&info_.free_bytes, &info_.total_bytes));
    PI_CHECK(cudaDriverGetVersion(&info_.driver_version));
    PI_CHECK(cudaRuntimeGetVersion(&info_.runtime_version));
  }

  int ordinal_;
  cudaStream_t streams_[2] = {};
  DeviceInfo info_;
  bool recording_ = false;
};

std::string version(int number) { return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10); }

// Why device `ordinal` cannot be used, or an empty string. Makes no context.
std::string obstacle(int ordinal) {
  for (const char* const name : {"CUDA_LAUNCH_BLOCKING", "HIP_LAUNCH_BLOCKING"}) {
    const char* const set = std::getenv(name);
    if (set != nullptr && std::strtol(set, nullptr, 10) != 0)
      return std::string(name) + " is set, and a launch that waits for the host would then never return";
  }
  int driver = 0, runtime = 0, devices = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0)
    return std::string("no ") + kVendor + " driver is loaded";
  (void)cudaRuntimeGetVersion(&runtime);
  const cudaError_t status = cudaGetDeviceCount(&devices);
  if (status == cudaErrorInsufficientDriver) {
    return "the driver is too old: it knows CUDA " + version(driver) + ", and this build needs " + version(runtime);
  }
  if (status == cudaErrorNoDevice || (status == cudaSuccess && devices == 0))
    return "a driver is loaded, but it finds no GPU";
  if (status != cudaSuccess) return message("cudaGetDeviceCount", status);
  if (ordinal < 0 || ordinal >= devices) {
    return "there is no GPU " + std::to_string(ordinal) + "; there are " + std::to_string(devices) + ", counted from 0";
  }
  int major = 0, minor = 0;
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, ordinal) != cudaSuccess ||
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, ordinal) != cudaSuccess) {
    return "the GPU does not tell its compute capability";
  }
  if (kBackend == std::string("cuda") && (major < kLeastMajor || (major == kLeastMajor && minor < kLeastMinor))) {
    return "the GPU is of compute capability " + std::to_string(major) + "." + std::to_string(minor) +
           ", and 7.5 is the least";
  }
  return "";
}

}  // namespace

void note_launch(const char* kernel, cudaError_t status) {
  if (status != cudaSuccess) failed_launch().note(kernel, status);
}

}  // namespace pi::cuda

extern "C" __attribute__((visibility("default"))) pi::cuda::Device* pi_open_device(uint64_t interface, int ordinal,
                                                                                   char* reason, size_t reason_bytes) {
  using namespace pi::cuda;
  if (interface != interface_id()) {
    std::snprintf(reason, reason_bytes,
                  "pi_%s was built from other sources than the engine; build it again: npm run build:native", kBackend);
    return nullptr;
  }
  try {
    // All code is loaded with the context, so that it is counted with it, and not when a kernel first runs.
    ::setenv(kLoadAtOnce[0], kLoadAtOnce[1], 0);
    const std::string why = obstacle(ordinal);
    std::snprintf(reason, reason_bytes, "%s", why.c_str());
    return why.empty() ? new CudaDevice(ordinal) : nullptr;
  } catch (const std::exception& error) {
    std::snprintf(reason, reason_bytes, "%s", error.what());
    return nullptr;
  }
}
