// A convolution of 8 bits whose input and result may be floats: levels of one scale, whole-numbered weights, exact
// integer sums, over whatever instruction set was chosen. Made for what reads an image. Knows no framework.
//
//     levels = clip(round(x / x_scale) + x_zero, 0, 255)                  round: half to even
//     v      = prelu(sum((levels - x_zero) * weights) * scale + bias; slope) + shift_out
//     y      = clip(round(v * (1 / y_scale)), -y_zero, 255 - y_zero) * y_scale, or v if y_scale is 0
//
// A NaN has the lowest level. Every step is rounded to float32, on every path, so all give the same bits. Pads have the
// level of 0.
#pragma once

#include <cstdint>
#include <vector>

#include "conv.h"
#include "dispatch.h"
#include "shape.h"

namespace bnas {

// check(shape), and whether its sums are exact in float32: 255 * 128 * 512 is below 2^24.
std::string check_bytes(const ConvShape& shape);

// uint8 levels: level l stands for (l - zero) * scale. A scale of 0 means no rounding.
struct Levels {
  float scale;
  int32_t zero;
};

// Why values cannot be rounded to such levels, or an empty text. may_be_none: whether scale may be 0.
std::string check(const Levels& levels, bool may_be_none);

struct ByteAffine {
  PerChannel scale, bias, slope, shift_out;  // of out_channels
  Levels y;
};

// Weights of one convolution, arranged for one path; immutable, so any number of threads may run it at once.
class ByteConv {
 public:
  // weights: int8 [out_channels, group_channels, kernel_h, kernel_w]. Batch, height and width may be anything.
  ByteConv(const ConvShape& shape, const int8_t* weights, const Path& path);

  // check_bytes(shape) and the checks of both levels must be empty, and all of shape but batch, height and width as in
  // the constructor. x: [batch, channels, height, width]; y: [batch, out_channels, oh, ow]. Throws std::bad_alloc.
  void run(const ConvShape& shape, const float* x, const Levels& levels, const ByteAffine& affine, float* y,
           const Host& host) const;

 private:
  Path path_;
  std::vector<int8_t> given_;      // as given; the reference reads it
  std::vector<uint32_t> weights_;  // [groups, blocks, steps, block] for the ByteIsa
  std::vector<int32_t> sums_;      // [out_channels]: of the weights
};

}  // namespace bnas
