// Threads of our own: delegates get none from the runtime. They sleep between partitions, and are shared by all
// partitions of a delegate.
#pragma once

#include <atomic>

#include "conv.h"

namespace bnas::litert {

class Threads {
 public:
  Threads() = default;
  ~Threads();
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

  // Runs tasks on up to `count` threads, the calling one among them. What fails to start is done without.
  Host host(int count);

 private:
  class Pool;

  // That of this process. Threads do not survive a fork, and what they held or waited for cannot be used or given back
  // in the child: there the pool is left as it is, and another one made.
  std::atomic<Pool*> pool_{nullptr};
};

}  // namespace bnas::litert
