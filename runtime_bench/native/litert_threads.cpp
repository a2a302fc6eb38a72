#include "litert_threads.h"

#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace bnas::litert {
namespace {

constexpr int kMostThreads = 256;

}  // namespace

class Threads::Pool {
 public:
  Pool() = default;
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  Host host(int count);

  const pid_t process = getpid();

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

Threads::Pool::~Pool() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    over_ = true;
  }
  begin_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

Host Threads::Pool::host(int count) {
  const std::lock_guard<std::mutex> lock(mutex_);
  wanted_ = count;
  try {
    while (static_cast<int>(workers_.size()) + 1 < count) {
      const int number = static_cast<int>(workers_.size()) + 1;
      workers_.emplace_back([this, number] { work(number); });
    }
  } catch (const std::system_error&) {
  }
  return workers_.empty() ? Host{} : Host{this, run};
}

void Threads::Pool::run(void* host, size_t tasks, void (*task)(void* job, size_t index), void* data) {
  Pool& threads = *static_cast<Pool*>(host);
  std::unique_lock<std::mutex> only(threads.one_job_, std::try_to_lock);
  if (!only) {
    for (size_t i = 0; i < tasks; ++i) task(data, i);
    return;
  }
  Job job{tasks, task, data};
  {
    const std::lock_guard<std::mutex> lock(threads.mutex_);
    threads.job_ = &job;
    ++threads.jobs_;
  }
  threads.begin_.notify_all();
  for (size_t i; (i = job.next++) < tasks;) task(data, i);
  // Workers that have not woken up yet are too late.
  std::unique_lock<std::mutex> lock(threads.mutex_);
  threads.job_ = nullptr;
  threads.end_.wait(lock, [&] { return job.inside == 0; });
}

void Threads::Pool::work(int number) {
  uint64_t seen = 0;
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    begin_.wait(lock, [&] { return over_ || (job_ && jobs_ != seen); });
    if (over_) return;
    seen = jobs_;
    if (number >= wanted_) continue;
    Job& job = *job_;
    ++job.inside;
    lock.unlock();
    for (size_t i; (i = job.next++) < job.tasks;) job.task(job.data, i);
    lock.lock();
    if (--job.inside == 0) end_.notify_one();
  }
}

Threads::~Threads() {
  const Pool* pool = pool_.load();
  if (pool && pool->process == getpid()) delete pool;
}

Host Threads::host(int count) {
  count = std::clamp(count, 1, kMostThreads);  // -1: the runtime leaves it open
  if (count == 1) return {};
  Pool* pool = pool_.load();
  while (!pool || pool->process != getpid()) {
    auto made = std::make_unique<Pool>();
    if (pool_.compare_exchange_strong(pool, made.get())) pool = made.release();
  }
  return pool->host(count);
}

}  // namespace bnas::litert
