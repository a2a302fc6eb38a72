// Threads of our own: delegates get none from the runtime. They sleep between partitions, and are shared by all
// partitions of a delegate.
#pragma once

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

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
  struct Job {
    size_t tasks;
    void (*task)(void* job, size_t index);
    void* data;
    std::atomic<size_t> next{0};
    int inside = 0;  // workers that may still use it; under mutex_
  };

  static void run(void* host, size_t tasks, void (*task)(void* job, size_t index), void* job);
  void work(int number);

  std::mutex one_job_;  // of several interpreters with one delegate, one has the workers
  std::mutex mutex_;    // of all below
  std::condition_variable begin_, end_;
  std::vector<std::thread> workers_;
  Job* job_ = nullptr;  // while it may be joined
  uint64_t jobs_ = 0;
  int wanted_ = 1;  // threads for the job
  bool over_ = false;
};

}  // namespace bnas::litert
