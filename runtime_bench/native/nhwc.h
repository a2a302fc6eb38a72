// Binary convolution where channels lie beside each other: [batch, height, width, channels], as TensorFlow has it.
//
// The kernels of isa.h count popcount(pixel xor weight), and do not know which of the two is which. Here the roles are
// swapped: output channels lie in the vector lanes, and the words of a few pixels are broadcast. So results come out
// channels last, and nothing is transposed.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "conv.h"

namespace bnas {

// What makes a float of a dot product d, which is a whole number; arrays have one value per output channel:
//   v = min(max(d, low), high) * scale + bias + residual          y = prelu(v - shift_in; slope) + shift_out
// Null is: no residual, slope 1, shift 0.
struct NhwcAffine {
  float low, high;
  const float *scale, *bias;
  const float* residual;  // [batch, out_height, out_width, out_channels]
  const float *shift_in, *slope, *shift_out;

  // The same for channels from `channel` on, of the position whose channels begin at `at` in the residual.
  NhwcAffine from(int64_t channel, int64_t at) const {
    const auto moved = [](const float* values, int64_t by) { return values ? values + by : nullptr; };
    return {low,
            high,
            scale + channel,
            bias + channel,
            moved(residual, at + channel),
            moved(shift_in, channel),
            moved(slope, channel),
            moved(shift_out, channel)};
  }
};

// A dot product d as 8 bits: round((fan_in - min(max(d, low), high)) * scale + bias), half away from zero, each
// operation rounded to float32, then cut to -128..127. Arrays have one value per output channel.
struct NhwcInt8 {
  int32_t low, high;
  const float *scale, *bias;
};

// Signs of an image, or what they are made of; one of the two is null.
struct NhwcImage {
  const uint32_t* bits;  // [batch, height, width, ceil(channels / 32)]: bit i of word j is channel 32 j + i, 1 means -1
  const float* values;   // [batch, height, width, channels]
  const float* shift;    // [channels], bit = value < shift; null: bit = value < 0
};

// Weights of one convolution for one path, and the plan of the image that it ran on last. Not for several threads at
// once; it uses those of its host.
class NhwcConv {
 public:
  // words: [out_channels, kernel_h, kernel_w, words of a group]. Where there are several groups, each fills whole words
  // of 32 channels. zero_pads: pads count as 0 in place of +1. `shape`'s batch, height and width may be anything.
  NhwcConv(const ConvShape& shape, const uint32_t* words, bool zero_pads, const Path& path);
  ~NhwcConv();

  // check(shape) must be empty, and all but batch, height, width and pads as in the constructor.
  // Throws std::bad_alloc or std::length_error if there is no room for the packed image.
  void run(const ConvShape& shape, const NhwcImage& x, const NhwcAffine& affine, float* y, const Host& host);
  void run_int8(const ConvShape& shape, const NhwcImage& x, const NhwcInt8& quantized, int8_t* y, const Host& host);

  // bit = fan_in - d > 2 * limits[o], y: bits as in NhwcImage. limits: int32 [out_channels], of at most 2^24 in size.
  void run_bits(const ConvShape& shape, const NhwcImage& x, const int32_t* limits, uint32_t* y, const Host& host);

 private:
  struct Plan;

  void plan_for(const ConvShape& shape);
  void add_classes(Plan* plan) const;
  void pack(const NhwcImage& x, const Host& host) const;
  template <typename Use>
  void count(const Host& host, const Use& use) const;
  template <typename Run>
  void on_path(const Host& host, const Run& run) const;
  const int32_t* pads_of(int64_t position, int64_t group) const;

  ConvShape shape_;
  bool zero_pads_;
  Path path_;
  int64_t words_;                  // of a group
  int64_t lanes_;                  // output channels of a group, filled up
  std::vector<uint8_t> weights_;   // [groups, steps, lanes] cells of the path; a step is a (row, column, word, cell)
  std::vector<int32_t> tap_sums_;  // [out_channels, kernel_h, kernel_w]: sums of the weights, if zero_pads
  std::unique_ptr<Plan> plan_;
};

// values [rows, channels] -> bits [rows, words_of(channels)], 1 where the value is less than `limit`.
void nhwc_pack(const Path& path, int64_t rows, int64_t channels, const float* values, uint32_t* bits, const Host& host);
void nhwc_pack(int64_t rows, int64_t channels, const int8_t* values, int limit, uint32_t* bits, const Host& host);

// The reverse: `plus` where the bit is 0, `minus` where it is 1.
template <typename T>
void nhwc_unpack(int64_t rows, int64_t channels, const uint32_t* bits, T plus, T minus, T* values) {
  const int64_t words = words_of(channels);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t c = 0; c < channels; ++c) {
      values[row * channels + c] = bits[row * words + c / kWordBits] >> (c % kWordBits) & 1 ? minus : plus;
    }
  }
}

// The maximum over windows of signs: -1 only where all are -1; pads never win. x, y: [batch, height, width, words].
void nhwc_max_pool(const PoolShape& shape, const uint32_t* x, uint32_t* y, const Host& host);

}  // namespace bnas
