#include "dispatch.h"

#include <cstdlib>
#include <stdexcept>

namespace bnas {

extern const Isa kPortable;
extern const ByteIsa kPortableBytes;
extern const ImageIsa kPortableImage;
#if defined(__x86_64__) || defined(_M_X64)
extern const Isa kAvx2;
extern const ByteIsa kAvx2Bytes;
extern const ImageIsa kAvx2Image;
extern const Isa kAvx512;
extern const ByteIsa kAvx512Bytes;
extern const ImageIsa kAvx512Image;
extern const NhwcIsa kAvx512Nhwc;
#elif defined(__aarch64__)
extern const Isa kNeon;
extern const ByteIsa kNeonBytes;
extern const ImageIsa kNeonImage;
#endif

namespace {

std::vector<Path> find_paths() {
  std::vector<Path> found = {{"reference", nullptr, nullptr, nullptr},
                             {kPortable.name, &kPortable, &kPortableBytes, &kPortableImage}};
#if defined(__x86_64__) || defined(_M_X64)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    found.push_back({kAvx2.name, &kAvx2, &kAvx2Bytes, &kAvx2Image});
  }
  if (__builtin_cpu_supports("avx512vpopcntdq") && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi")) {
    found.push_back({kAvx512.name, &kAvx512, &kAvx512Bytes, &kAvx512Image, &kAvx512Nhwc});
  }
#elif defined(__aarch64__)
  found.push_back({kNeon.name, &kNeon, &kNeonBytes, &kNeonImage});
#endif
  return found;
}

}  // namespace

const std::vector<Path>& paths() {
  static const std::vector<Path> known = find_paths();
  return known;
}

const Path& path(const std::string& name) {
  if (name.empty()) return paths().back();
  std::string names;
  for (const Path& candidate : paths()) {
    if (name == candidate.name) return candidate;
    names += (names.empty() ? "" : ", ") + std::string(candidate.name);
  }
  throw std::invalid_argument("BNAS_ISA=" + name + " is not one of " + names);
}

const Path& selected_path() {
  const char* wanted = std::getenv("BNAS_ISA");
  return path(wanted ? wanted : "");
}

}  // namespace bnas
