// What is asked of the operating system: processors, memory, a folder of which nothing may remain.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace bnas {

// The processors that this process may run on.
std::vector<int> allowed_cpus();

// Keeps this process, and the threads it starts from now on, to a list such as "0,2-3". Throws Mistake, naming those
// that there are, for one that there is not.
void pin_to(const std::string& list);

struct Memory {  // in bytes; -1 where it cannot be read
  int64_t peak, resident;
};

Memory memory_in_use();

// Removes a folder with everything in it when it is destroyed, but for what links lead to.
class FolderToRemove {
 public:
  // Empty: none. Throws Mistake if it is no folder, or one whose name does not begin with "bnas-".
  explicit FolderToRemove(const std::string& path);
  ~FolderToRemove();
  FolderToRemove(const FolderToRemove&) = delete;
  FolderToRemove& operator=(const FolderToRemove&) = delete;

 private:
  std::string path_;
};

}  // namespace bnas
