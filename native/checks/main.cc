#include <cstdio>
#include <exception>

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

Check::Check(std::string name, std::function<std::string()> body) { entries().push_back({std::move(name), std::move(body)}); }

int run_all() {
  int failed = 0;
  for (const Entry& entry : entries()) {
    const std::string problem = run(entry);
    std::printf("%s %s%s%s\n", problem.empty() ? "ok" : "FAIL", entry.name.c_str(), problem.empty() ? "" : ": ", problem.c_str());
    failed += problem.empty() ? 0 : 1;
  }
  return failed == 0 ? 0 : 1;
}

}  // namespace pi::checks

int main() { return pi::checks::run_all(); }
