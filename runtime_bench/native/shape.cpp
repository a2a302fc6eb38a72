#include "shape.h"

namespace bnas {
namespace {

constexpr int64_t kMaxSize = int64_t{1} << 20;   // of one axis, pad, stride or dilation
constexpr int64_t kMaxCount = int64_t{1} << 40;  // of the elements of a tensor
constexpr int64_t kMaxFanIn = int64_t{1} << 23;

std::string outside(const char* what, int64_t value, int64_t least) {
  if (value >= least && value <= kMaxSize) return {};
  return std::string(what) + " is " + std::to_string(value) + ", expected " + std::to_string(least) + " to " +
         std::to_string(kMaxSize);
}

bool too_many(std::initializer_list<int64_t> sizes) {
  int64_t count = 1;
  for (int64_t size : sizes) {
    if (size > 0 && count > kMaxCount / size) return true;
    count *= size;
  }
  return false;
}

std::string window(const char* axis, int64_t size, int64_t before, int64_t after, int64_t kernel, int64_t dilation) {
  if (kernel > 1 && dilation > kMaxSize / (kernel - 1)) return "dilation times kernel is too large";
  const int64_t extent = dilation * (kernel - 1) + 1;
  if (extent <= size + before + after) return {};
  return std::string("the kernel spans ") + std::to_string(extent) + " pixels, more than the padded " + axis + " of " +
         std::to_string(size + before + after);
}

}  // namespace

std::string check(const ConvShape& s) {
  const struct {
    const char* what;
    int64_t value, least;
  } sizes[] = {
      {"batch", s.batch, 0},
      {"channels", s.channels, 1},
      {"height", s.height, 1},
      {"width", s.width, 1},
      {"output channels", s.out_channels, 1},
      {"group", s.groups, 1},
      {"kernel height", s.kernel_h, 1},
      {"kernel width", s.kernel_w, 1},
      {"stride", s.stride_h, 1},
      {"stride", s.stride_w, 1},
      {"dilation", s.dilation_h, 1},
      {"dilation", s.dilation_w, 1},
      {"pad", s.pad_top, 0},
      {"pad", s.pad_left, 0},
      {"pad", s.pad_bottom, 0},
      {"pad", s.pad_right, 0},
  };
  for (const auto& size : sizes) {
    std::string error = outside(size.what, size.value, size.least);
    if (!error.empty()) return error;
  }
  if (s.channels % s.groups || s.out_channels % s.groups) {
    return "group " + std::to_string(s.groups) + " does not divide " + std::to_string(s.channels) + " and " +
           std::to_string(s.out_channels) + " channels";
  }
  if (too_many({s.group_channels(), s.kernel_h, s.kernel_w}) || s.fan_in() > kMaxFanIn) {
    return "more than " + std::to_string(kMaxFanIn) + " weights per output channel";
  }
  std::string error = window("height", s.height, s.pad_top, s.pad_bottom, s.kernel_h, s.dilation_h);
  if (error.empty()) error = window("width", s.width, s.pad_left, s.pad_right, s.kernel_w, s.dilation_w);
  if (!error.empty()) return error;
  if (too_many({s.batch, s.channels + kWordBits * s.groups, s.height + s.pad_top + s.pad_bottom + s.stride_h,
                s.width + s.pad_left + s.pad_right + s.stride_w}) ||
      too_many({s.batch, s.out_channels + kWordBits, s.out_height(), s.out_width()}) ||
      too_many({s.out_channels + kWordBits, s.fan_in() + kWordBits * s.kernel_h * s.kernel_w})) {
    return "the tensors are too large";
  }
  return {};
}

std::string check(const PoolShape& s) {
  const struct {
    const char* what;
    int64_t value, least;
  } sizes[] = {
      {"batch", s.batch, 0},
      {"words", s.words, 1},
      {"height", s.height, 1},
      {"width", s.width, 1},
      {"kernel height", s.kernel_h, 1},
      {"kernel width", s.kernel_w, 1},
      {"stride", s.stride_h, 1},
      {"stride", s.stride_w, 1},
      {"pad", s.pad_top, 0},
      {"pad", s.pad_left, 0},
      {"pad", s.pad_bottom, 0},
      {"pad", s.pad_right, 0},
  };
  for (const auto& size : sizes) {
    std::string error = outside(size.what, size.value, size.least);
    if (!error.empty()) return error;
  }
  // A window of nothing but padding would have no maximum.
  if (s.pad_top >= s.kernel_h || s.pad_bottom >= s.kernel_h || s.pad_left >= s.kernel_w || s.pad_right >= s.kernel_w) {
    return "pads must be smaller than the kernel";
  }
  std::string error = window("height", s.height, s.pad_top, s.pad_bottom, s.kernel_h, 1);
  if (error.empty()) error = window("width", s.width, s.pad_left, s.pad_right, s.kernel_w, 1);
  if (!error.empty()) return error;
  if (too_many({s.batch, s.words, s.height + s.pad_top + s.pad_bottom, s.width + s.pad_left + s.pad_right})) {
    return "the tensors are too large";
  }
  return {};
}

}  // namespace bnas
