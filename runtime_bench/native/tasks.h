// Tasks on the host's threads.
#pragma once

#include <atomic>
#include <cstdint>
#include <new>

#include "conv.h"

namespace bnas {

// task(i) for each i < tasks. Throws std::bad_alloc if one of them does, but not through the host's threads.
template <typename Task>
void run_tasks(const Host& host, int64_t tasks, const Task& task) {
  if (tasks <= 1 || !host.run) {
    for (int64_t i = 0; i < tasks; ++i) task(i);
    return;
  }
  struct Job {
    const Task& task;
    std::atomic<bool> no_room{false};
  } job{task};
  host.run(
      host.host, static_cast<size_t>(tasks),
      [](void* of_job, size_t index) {
        Job& j = *static_cast<Job*>(of_job);
        try {
          j.task(static_cast<int64_t>(index));
        } catch (const std::bad_alloc&) {
          j.no_room = true;
        }
      },
      &job);
  if (job.no_room) throw std::bad_alloc();
}

}  // namespace bnas
