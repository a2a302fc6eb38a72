// Loops of one instruction set for images whose channels lie beside each other; see nhwc.h. Output channels lie in the
// vector lanes, and the words of pixels are broadcast.
#pragma once

#include <cstdint>

#include "nhwc.h"

namespace bnas {

// One group of output channels over a run of pixels.
struct NhwcCounting {
  const uint32_t* image;    // packed words
  const int32_t* begins;    // [positions]: where each output pixel's window begins in the image
  const int32_t* offsets;   // [steps]: what each step reads, from there
  const uint32_t* weights;  // [steps, lanes]
  int64_t steps, lanes;
  int64_t outputs;          // channels of the group, at most `lanes`
  const int32_t* pad_sums;  // [classes, pad_step]: taken from the dot products, see NhwcConv
  const int32_t* classes;   // [positions], or null: no pads of 0
  int64_t pad_step;
  float fan_in;
};

// Positions [begin, end) of a job; all pointers to channels are to those of the group's first one. row: channels (or
// words) from one position to the next.
struct NhwcIsa {
  // words[i] = bits of values[i * 32 ...] < shift, for `channels` of each of `pixels`; shift may be null.
  void (*pack)(const float* values, const float* shift, int64_t channels, int64_t pixels, uint32_t* words);
  void (*to_float)(const NhwcCounting& job, const NhwcAffine& affine, int64_t begin, int64_t end, float* y,
                   int64_t row);
  void (*to_int8)(const NhwcCounting& job, const NhwcInt8& quantized, int64_t begin, int64_t end, int8_t* y,
                  int64_t row);
  void (*to_bits)(const NhwcCounting& job, const int32_t* limits, int64_t begin, int64_t end, uint32_t* y, int64_t row);
};

}  // namespace bnas
