// What fails in the middle: the step ends with the reason, nobody waits for ever, and what was counted can still be
// asked.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>

#include "checks/check.h"
#include "checks/hybrid/steps.h"

namespace pi::checks {
namespace {

constexpr const char* kTold = "PI_EMULATOR_FAIL";

// An engine whose device fails at a kernel of this name, or at the one of this number. Only the emulator's does.
std::unique_ptr<Engine> failing(EngineOptions options, const std::string& kernel) {
  ::setenv(kTold, kernel.c_str(), 1);
  auto engine = std::make_unique<Engine>(std::move(options));
  ::unsetenv(kTold);
  return engine;
}

// What `act` throws; empty where it does not.
template <typename F>
std::string error_of(F&& act) {
  try {
    act();
    return "";
  } catch (const std::runtime_error& error) {
    return error.what();
  }
}

bool has(const std::string& text, const std::string& words) { return text.find(words) != std::string::npos; }

// Every second kernel of a step in turn fails: those before an answer that the host waits for, and those that wait for
// the host.
std::string fail_everywhere() {
  const Shape shape;
  const TinyModel model(shape, 8);
  int failed = 0;
  for (int kernel = 1; kernel < 60; kernel += 2) {
    EngineOptions options = model.options();
    options.gpu = share(shape, 0.5, 0b0101);
    const auto engine = failing(std::move(options), std::to_string(kernel));
    const std::string error = error_of([&] { logits(*engine, decoding(0, 1, FfnMode::kPredictor)); });
    if (!error.empty() && !has(error, kTold)) return error;
    failed += !error.empty();
  }
  return failed > 8 ? std::string() : "only " + std::to_string(failed) + " steps failed";
}

// Steps go on until one fails, wherever re-placement is then: counting, choosing, packing, sending.
std::string fail_while_adapting() {
  const TinyModel model(small(), 9);
  const Rows rows = decoding(0, 32, FfnMode::kPredictor);
  for (const int kernel : {20, 160, 220}) {
    const std::string at = "kernel " + std::to_string(kernel) + ": ";
    const auto engine = failing(adapting(model, 0.5, 0b1111), std::to_string(kernel));
    std::string error;
    uint64_t good = 0;
    for (; error.empty() && good < 200; good += error.empty()) error = error_of([&] { logits(*engine, rows); });
    if (!has(error, kTold)) return at + "after " + std::to_string(good) + " steps: " + error;
    const EngineStats stats = engine->stats();
    if (stats.rows != 32 * good) return at + std::to_string(stats.rows) + " rows of " + std::to_string(good) + " steps";
    if (!has(stats.gpu.swaps_stopped, kTold)) return at + "swaps go on: " + stats.gpu.swaps_stopped;
    const LayerSwap swap{0, {0, 99}};
    if (!has(error_of([&] { engine->swap_neurons({&swap, 1}); }), kTold)) return at + "neurons change places";
    if (!has(error_of([&] { logits(*engine, rows); }), kTold)) return at + "the next step does not fail";
    if (engine->stats().gpu.swaps != stats.gpu.swaps) return at + "swaps were counted after the end";
    engine->reset_stats();
  }
  return "";
}

// The kernel that puts neurons in their new places is the one that fails: the host's are there already.
std::string fail_in_between() {
  const TinyModel model(small(), 3);
  const auto engine = failing(adapting(model, 0.5, 0b1111), "scatter_rows");
  const Rows rows = decoding(0, 32, FfnMode::kPredictor);
  std::string error;
  for (int step = 0; step < 3000 && error.empty(); ++step) {
    error = error_of([&] { logits(*engine, rows); });
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  if (!has(error, "kernel scatter_rows: fails")) return "neurons changed places, or never did: " + error;
  if (!has(engine->stats().gpu.swaps_stopped, "scatter_rows")) return "swaps go on";
  error = error_of([&] { logits(*engine, rows); });
  return has(error, "neurons changed places, open the model again: ") && has(error, "scatter_rows")
             ? ""
             : "the next step: " + error;
}

const std::vector<Check> kernels_fail = [] {
  std::vector<Check> out;
  const char* const device = std::getenv("PI_DEVICE");
  if (!device || std::string(device) != "emulated") return out;
  out.emplace_back(
      "hybrid: a kernel that fails ends the step with its error, wherever it is, and nobody waits for ever",
      fail_everywhere);
  out.emplace_back("adapt: a step that fails stops re-placement with its error, and what was counted can be asked",
                   fail_while_adapting);
  out.emplace_back("adapt: nothing is computed once nobody knows where neurons are", fail_in_between);
  return out;
}();

// This process's descriptors of a file, from now on of something that cannot be read. What is mapped stays as it is.
int make_unreadable(const std::string& path) {
  struct stat file {};
  if (::stat(path.c_str(), &file) != 0) throw std::runtime_error(path + ": is not there");
  const int nothing = ::open("/dev/null", O_WRONLY | O_CLOEXEC);
  int n = 0;
  for (int fd = 0; fd < 1024; ++fd) {
    struct stat info {};
    if (::fstat(fd, &info) != 0 || info.st_ino != file.st_ino || info.st_dev != file.st_dev) continue;
    ::dup2(nothing, fd);
    ++n;
  }
  ::close(nothing);
  return n;
}

const Check unreadable("adapt: a file that cannot be read ends re-placement with the reason, and nothing else", [] {
  const TinyModel model(small(), 3);
  Engine alone(model.options());
  const EngineOptions options = adapting(model, 0.5, 0b1111);
  Engine engine(options);
  if (make_unreadable(options.files[0]) < 2) return std::string("the file is not open");
  const Rows rows = decoding(0, 32, FfnMode::kPredictor);
  std::string why;
  for (int step = 0; step < 3000 && why.empty(); ++step) {
    logits(engine, rows);
    why = engine.stats().gpu.swaps_stopped;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  if (!has(why, options.files[0] + ": cannot be read at ")) return "stopped: " + why;
  if (engine.stats().gpu.swaps != 0) return std::string("neurons changed places");
  const LayerSwap swap{0, {0, 99}};
  if (error_of([&] { engine.swap_neurons({&swap, 1}); }) != why) return std::string("a swap was not refused");
  const double off = distance(logits(alone, rows), logits(engine, rows), model.shape().vocab);
  return off <= 1e-3 ? std::string() : "logits differ by " + std::to_string(off);
});

}  // namespace
}  // namespace pi::checks
