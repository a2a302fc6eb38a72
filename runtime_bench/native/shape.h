// What a binary convolution is computed over. Sizes are counts; pads are +1 (bit 0).
#pragma once

#include <cstdint>
#include <string>

namespace bnas {

inline constexpr int64_t kWordBits = 32;  // channels in one word of packed bits

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Bits tensor: uint32 [batch, ceil(channels / 32), height, width]; bit i of word j is channel 32 j + i, 1 means -1;
// bits past the last channel are 0.
inline int64_t words_of(int64_t channels) { return ceil_div(channels, kWordBits); }

struct ConvShape {
  int64_t batch = 1;
  int64_t channels = 0, height = 0, width = 0;
  int64_t out_channels = 0, groups = 1;
  int64_t kernel_h = 1, kernel_w = 1;
  int64_t stride_h = 1, stride_w = 1;
  int64_t dilation_h = 1, dilation_w = 1;
  int64_t pad_top = 0, pad_left = 0, pad_bottom = 0, pad_right = 0;

  int64_t group_channels() const { return channels / groups; }
  int64_t group_outputs() const { return out_channels / groups; }
  int64_t fan_in() const { return group_channels() * kernel_h * kernel_w; }
  int64_t out_height() const {
    return (height + pad_top + pad_bottom - dilation_h * (kernel_h - 1) - 1) / stride_h + 1;
  }
  int64_t out_width() const { return (width + pad_left + pad_right - dilation_w * (kernel_w - 1) - 1) / stride_w + 1; }
};

// Why `shape` cannot be computed, or an empty text. Every product of sizes that the kernels form stays below 2^40, and
// the fan-in below 2^23, so that its dot products are exact in float32.
std::string check(const ConvShape& shape);

struct PoolShape {
  int64_t batch = 1;
  int64_t words = 0, height = 0, width = 0;
  int64_t kernel_h = 1, kernel_w = 1;
  int64_t stride_h = 1, stride_w = 1;
  int64_t pad_top = 0, pad_left = 0, pad_bottom = 0, pad_right = 0;

  int64_t out_height() const { return (height + pad_top + pad_bottom - kernel_h) / stride_h + 1; }
  int64_t out_width() const { return (width + pad_left + pad_right - kernel_w) / stride_w + 1; }
};

std::string check(const PoolShape& shape);

}  // namespace bnas
