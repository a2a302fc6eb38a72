#include "bound.h"

#include <algorithm>
#include <chrono>

namespace bnas {

double bound_gmacs(const Path& path, double seconds) {
  using Clock = std::chrono::steady_clock;
  constexpr double kRunSeconds = 2e-3;
  const Clock::time_point end =
      Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  uint32_t sink = 1;
  int64_t rounds = 1000;
  double best = 0;
  for (Clock::time_point before = Clock::now(); before < end;) {
    const int64_t macs = path.isa->bound(rounds, &sink);
    const Clock::time_point after = Clock::now();
    const double taken = std::chrono::duration<double>(after - before).count();
    if (taken < kRunSeconds / 2) {
      rounds *= 2;
    } else {
      best = std::max(best, static_cast<double>(macs) / taken / 1e9);
    }
    before = after;
  }
  static volatile uint32_t kept;
  kept = sink;
  static_cast<void>(kept);
  return best;
}

}  // namespace bnas
