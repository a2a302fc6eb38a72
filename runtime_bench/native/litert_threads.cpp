#include "litert_threads.h"

#include <algorithm>
#include <system_error>

namespace bnas::litert {
namespace {

constexpr int kMostThreads = 256;

}  // namespace

Threads::~Threads() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    over_ = true;
  }
  begin_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

Host Threads::host(int count) {
  count = std::clamp(count, 1, kMostThreads);  // -1: the runtime leaves it open
  const std::lock_guard<std::mutex> lock(mutex_);
  wanted_ = count;
  try {
    while (static_cast<int>(workers_.size()) + 1 < count) {
      const int number = static_cast<int>(workers_.size()) + 1;
      workers_.emplace_back([this, number] { work(number); });
    }
  } catch (const std::system_error&) {
  }
  return count > 1 && !workers_.empty() ? Host{this, run} : Host{};
}

void Threads::run(void* host, size_t tasks, void (*task)(void* job, size_t index), void* data) {
  Threads& threads = *static_cast<Threads*>(host);
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

void Threads::work(int number) {
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

}  // namespace bnas::litert
