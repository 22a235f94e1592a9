#include <algorithm>
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "checks/check.h"

namespace pi::checks {
namespace {

struct Entry {
  std::string name;
  std::function<std::string()> body;
};

std::vector<Entry>& entries() {
  static std::vector<Entry> all;
  return all;
}

std::string run(const Entry& entry) {
  try {
    return entry.body();
  } catch (const std::exception& error) {
    return error.what();
  }
}

}  // namespace

Check::Check(std::string name, std::function<std::string()> body) {
  entries().push_back({std::move(name), std::move(body)});
}

// Those whose name has one of the words in it; all without any. None at all is a failure.
int run_all(const std::vector<std::string>& words) {
  int failed = 0, ran = 0;
  for (const Entry& entry : entries()) {
    const auto named = [&](const std::string& word) { return entry.name.find(word) != std::string::npos; };
    if (!words.empty() && std::none_of(words.begin(), words.end(), named)) continue;
    ++ran;
    const std::string problem = run(entry);
    std::printf("%s %s%s%s\n", problem.empty() ? "ok" : "FAIL", entry.name.c_str(), problem.empty() ? "" : ": ",
                problem.c_str());
    std::fflush(stdout);  // should the next one never end
    failed += problem.empty() ? 0 : 1;
  }
  if (ran == 0) std::printf("FAIL no check has such a name\n");
  return failed == 0 && ran > 0 ? 0 : 1;
}

}  // namespace pi::checks

int main(int argc, char** argv) { return pi::checks::run_all({argv + 1, argv + argc}); }
