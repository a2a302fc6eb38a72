#include "litert_options.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace bnas::litert {
namespace {

// Of the format's types, those that can hold what we look for.
enum Kind { kInt = 1, kUint = 2, kIndirectInt = 6, kIndirectUint = 7, kMap = 9, kBool = 26 };

constexpr size_t kLongestName = 64;  // of those that we look for none is longer

// A flexbuffer is read from its end: offsets lead backwards, and sizes stand in front of what they measure.
class Bytes {
 public:
  Bytes(const void* data, size_t size) : data_(static_cast<const uint8_t*>(data)), size_(size) {}

  uint64_t number(size_t at, size_t width) const {  // little-endian
    require(at, width);
    uint64_t value = 0;
    std::memcpy(&value, data_ + at, width);
    return value;
  }

  int64_t signed_number(size_t at, size_t width) const {
    const uint64_t value = number(at, width);
    const size_t unused = 8 * (8 - width);
    return static_cast<int64_t>(value << unused) >> unused;
  }

  // Where the offset that stands at `at` leads.
  size_t follow(size_t at, size_t width) const {
    const uint64_t offset = number(at, width);
    if (offset > at) refuse();
    return at - static_cast<size_t>(offset);
  }

  size_t before(size_t at, size_t bytes) const {
    if (bytes > at) refuse();
    return at - bytes;
  }

  // At most kLongestName characters: many names may lie at one place, and be read again and again.
  std::string text(size_t at) const {
    require(at, 1);
    const size_t most = std::min(kLongestName, size_ - at);
    const void* end = std::memchr(data_ + at, 0, most);
    if (!end && most < kLongestName) refuse();
    return std::string(reinterpret_cast<const char*>(data_ + at),
                       end ? static_cast<const uint8_t*>(end) - data_ - at : most);
  }

  void require(size_t at, size_t bytes) const {
    if (at > size_ || bytes > size_ - at) refuse();
  }

  [[noreturn]] static void refuse() { throw std::invalid_argument("the options are no whole flexbuffer map"); }

 private:
  const uint8_t* data_;
  size_t size_;
};

size_t checked_width(uint64_t width) {
  if (width != 1 && width != 2 && width != 4 && width != 8) Bytes::refuse();
  return static_cast<size_t>(width);
}

}  // namespace

std::map<std::string, int64_t> parse_options(const void* data, size_t size) {
  const Bytes bytes(data, data ? size : 0);
  if (!data || size < 3) Bytes::refuse();
  const size_t root_width = checked_width(bytes.number(size - 1, 1));
  const uint64_t root_type = bytes.number(size - 2, 1);
  if (root_type >> 2 != kMap) Bytes::refuse();
  const size_t map = bytes.follow(bytes.before(size - 2, root_width), root_width);
  const size_t width = size_t{1} << (root_type & 3);

  // In front of a map: its size, the width of its keys, and the offset to them; behind it a type for each value.
  const uint64_t count = bytes.number(bytes.before(map, width), width);
  const size_t key_width = checked_width(bytes.number(bytes.before(map, 2 * width), width));
  const size_t keys = bytes.follow(bytes.before(map, 3 * width), width);
  if (count > size) Bytes::refuse();
  std::map<std::string, int64_t> options;
  for (size_t i = 0; i < count; ++i) {
    const std::string name = bytes.text(bytes.follow(keys + i * key_width, key_width));
    const size_t at = map + i * width;
    const uint64_t type = bytes.number(map + static_cast<size_t>(count) * width + i, 1);
    switch (type >> 2) {
      case kInt:
        options[name] = bytes.signed_number(at, width);
        break;
      case kUint:
      case kBool:
        options[name] = static_cast<int64_t>(bytes.number(at, width));
        break;
      case kIndirectInt:
        options[name] = bytes.signed_number(bytes.follow(at, width), size_t{1} << (type & 3));
        break;
      case kIndirectUint:
        options[name] = static_cast<int64_t>(bytes.number(bytes.follow(at, width), size_t{1} << (type & 3)));
        break;
      default:
        break;
    }
  }
  return options;
}

}  // namespace bnas::litert
