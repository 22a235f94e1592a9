#include <atomic>

#include "base/thread_pool.h"
#include "checks/check.h"

namespace pi::checks {
namespace {

// Many short jobs of changing size: a late worker must never run an index of a job that is over, or one twice.
std::string every_index_once(int threads) {
  ThreadPool pool(threads);
  for (int round = 0; round < 20000; ++round) {
    const int n = 1 + round % 13;
    std::vector<std::atomic<int>> seen(n);
    pool.parallel_for(n, [&](int i) { seen.at(i).fetch_add(1); });
    for (int i = 0; i < n; ++i) {
      if (seen[i] != 1)
        return "index " + std::to_string(i) + " of " + std::to_string(n) + " ran " + std::to_string(seen[i]) + " times";
    }
  }
  return "";
}

// A pool that ends while its workers still look at its last job: none of them may take the end for that job.
std::string ends() {
  for (int round = 0; round < 5000; ++round) {
    ThreadPool pool(4);
    for (int job = 0; job < round % 3; ++job) pool.parallel_for(2, [](int) {});
  }
  return "";
}

const Check end("pool: ends whatever its workers are at", ends);
const Check one("pool of 1: every index once", [] { return every_index_once(1); });
const Check two("pool of 2: every index once", [] { return every_index_once(2); });
const Check five("pool of 5: every index once", [] { return every_index_once(5); });

}  // namespace
}  // namespace pi::checks
