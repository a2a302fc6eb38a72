#include "system.h"

#include <ftw.h>
#include <sched.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>

#include "runtime.h"

namespace bnas {
namespace {

std::vector<int> numbers_of(const cpu_set_t& set) {
  std::vector<int> numbers;
  for (int i = 0; i < CPU_SETSIZE; ++i) {
    if (CPU_ISSET(i, &set)) numbers.push_back(i);
  }
  return numbers;
}

// A whole number at `*at`, which is moved behind it; -1 if there is none or it is too large for a processor's.
int cpu_number(const char** at) {
  char* end = nullptr;
  if (**at < '0' || **at > '9') return -1;
  const unsigned long value = std::strtoul(*at, &end, 10);
  *at = end;
  return value < CPU_SETSIZE ? static_cast<int>(value) : -1;
}

// False if it is no list of numbers and ranges.
bool parse_cpus(const std::string& list, cpu_set_t* set) {
  CPU_ZERO(set);
  for (const char* at = list.c_str();; ++at) {
    const int first = cpu_number(&at);
    int last = first;
    if (*at == '-') last = cpu_number(&++at);
    if (first < 0 || last < first || (*at != ',' && *at != '\0')) return false;
    for (int i = first; i <= last; ++i) CPU_SET(i, set);
    if (*at == '\0') return at == list.c_str() + list.size();
  }
}

int remove_entry(const char* path, const struct stat*, int, struct FTW*) {
  std::remove(path);
  return 0;  // what cannot be removed keeps nothing else from it
}

}  // namespace

std::vector<int> allowed_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof set, &set) == 0 ? numbers_of(set) : std::vector<int>();
}

void pin_to(const std::string& list) {
  cpu_set_t wanted, all;
  const bool parsed = parse_cpus(list, &wanted);
  // More than the process was started with may be there: the system takes out what is not.
  std::memset(&all, 0xff, sizeof all);
  sched_setaffinity(0, sizeof all, &all);
  const std::vector<int> there = allowed_cpus();
  if (parsed && sched_setaffinity(0, sizeof wanted, &wanted) == 0 && allowed_cpus() == numbers_of(wanted)) return;
  std::string names;
  for (int number : there) names += (names.empty() ? "" : ",") + std::to_string(number);
  throw Mistake("--cpus is '" + list + "', expected numbers and ranges such as 0,2-3 of these: " + names);
}

Memory memory_in_use() {
  Memory memory = {-1, -1};
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    long long kib = 0;
    if (std::sscanf(line.c_str(), "VmHWM: %lld kB", &kib) == 1) memory.peak = kib * 1024;
    if (std::sscanf(line.c_str(), "VmRSS: %lld kB", &kib) == 1) memory.resident = kib * 1024;
  }
  return memory;
}

FolderToRemove::FolderToRemove(const std::string& path) {
  std::string plain = path;
  while (plain.size() > 1 && plain.back() == '/') plain.pop_back();
  if (plain.empty()) return;
  if (plain.compare(plain.rfind('/') + 1, 5, "bnas-") != 0) {
    throw Mistake("--remove-at-end is " + path + ", expected a folder whose name begins with bnas-");
  }
  struct stat status = {};
  if (lstat(plain.c_str(), &status) != 0 || !S_ISDIR(status.st_mode)) {
    throw Mistake("--remove-at-end is " + path + ", which is no folder");
  }
  path_ = absolute(plain);
}

FolderToRemove::~FolderToRemove() {
  constexpr int kOpenFolders = 16;
  if (!path_.empty()) nftw(path_.c_str(), remove_entry, kOpenFolders, FTW_DEPTH | FTW_PHYS | FTW_MOUNT);
}

}  // namespace bnas
