// What a device does not take: a launch that it refuses, and more launches than its queue holds. Only the emulator does
// so when told to.
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "checks/check.h"
#include "checks/hybrid/steps.h"

namespace pi::checks {
namespace {

std::unique_ptr<Engine> engine_with(const char* setting, int value, EngineOptions options) {
  ::setenv(setting, std::to_string(value).c_str(), 1);
  auto engine = std::make_unique<Engine>(std::move(options));
  ::unsetenv(setting);
  return engine;
}

Rows rows_of(int sequence, bool prompts) {
  Rows rows;
  rows.add(sequence, 0, FfnMode::kPredictor);
  for (int i = 0; prompts && i < 5; ++i) rows.add(1, i, FfnMode::kDense, true);
  return rows;
}

// Every third launch in turn: those that would have told the host something, and those that come after a kernel that
// waits.
std::string refuse_everywhere(bool prompts) {
  const Shape shape;
  const TinyModel model(shape, 8);
  EngineOptions options = model.options();
  options.gpu = share(shape, 0.5, 0b0101);
  Engine whole(options);
  const Rows rows[] = {rows_of(0, prompts), rows_of(2, prompts)};  // that ask for other neurons
  const std::vector<float> expected[] = {logits(whole, rows[0]), logits(whole, rows[1])};
  int refused = 0;
  for (int launch = 1; launch < 80; launch += 3) {
    const auto engine = engine_with("PI_EMULATOR_REFUSE", launch, options);
    bool told = false;
    for (int step = 0; step < 3; ++step) {  // the second or third is right whatever the number
      try {
        if (logits(*engine, rows[step % 2]) != expected[step % 2])
          return "after launch " + std::to_string(launch) + " step " + std::to_string(step) + " differs";
      } catch (const std::runtime_error& error) {
        if (told || std::string(error.what()).find("PI_EMULATOR_REFUSE") == std::string::npos) return error.what();
        told = true;
      }
    }
    refused += told;
  }
  return refused > 5 ? std::string() : "only " + std::to_string(refused) + " steps failed";
}

// A prompt's launches are many times what the queue holds. All of them at once, before the host gives what the first
// one waits for, would never come to an end.
std::string fill_queue() {
  Shape shape;
  shape.n_layers = 10;
  const TinyModel model(shape, 8);
  EngineOptions options = model.options();
  options.gpu = share(shape, 0.5, ~0u);
  Engine whole(options);
  const auto engine = engine_with("PI_EMULATOR_QUEUE", 80, options);
  for (const bool prompts : {true, false, true}) {
    const Rows rows = rows_of(0, prompts);
    if (logits(*engine, rows) != logits(whole, rows)) return "other logits";
  }
  return "";
}

const std::vector<Check> refusals = [] {
  std::vector<Check> out;
  const char* const device = std::getenv("PI_DEVICE");
  if (!device || std::string(device) != "emulated") return out;
  for (const bool prompts : {false, true}) {
    out.emplace_back("hybrid: a launch that is refused ends the step with its name, and the next one is right, " +
                         std::string(prompts ? "with prompts" : "decoding"),
                     [prompts] { return refuse_everywhere(prompts); });
  }
  out.emplace_back("hybrid: a step of more launches than a queue holds comes to its end", fill_queue);
  return out;
}();

}  // namespace
}  // namespace pi::checks
