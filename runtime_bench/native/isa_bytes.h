// What one instruction set provides for convolutions of 8 bits; see byte_conv.h. As for binary ones, pixels lie in the
// lanes: a cell of 32 bits holds what an output pixel reads at 4 (or 2) places of its window that lie beside each
// other, and the cells of neighbouring output pixels lie beside each other.
#pragma once

#include <cstdint>
#include <cstring>

namespace bnas {

inline constexpr int64_t kCellOverread = 64;    // cells that may be read past the last position
inline constexpr int64_t kLevelOverread = 128;  // levels that may be read past the last one

// One block of output channels over one image.
struct ByteJob {
  const uint32_t* cells;
  const int64_t* offsets;   // [steps]: where step s reads position 0
  const uint32_t* weights;  // [steps, block]: cells of weights
  int64_t steps;
};

// What becomes of the sums of one output channel. With `start` added they are those of (level - zero) * weight.
struct ByteFinish {
  int32_t start;
  float scale, bias, slope, shift_out;
};

// What is alike in all channels.
struct ByteEnd {
  bool rectify;  // whether there is an activation
  bool round;    // to levels: v * inverse, between low and high, times scale
  float inverse, low, high, scale;
};

struct ByteIsa {
  int values;  // in a cell: 4 of 8 bits, level and signed weight; or 2 of 16 bits, level minus zero and signed weight
  int block;   // output channels computed together

  // levels[p * channels + c] = the level of x[c * plane + p], for p < pixels.
  void (*quantize)(const float* x, int64_t plane, int64_t channels, int64_t pixels, float scale, int32_t zero,
                   uint8_t* levels);

  // cells[i] = the cell of levels[i * step ...], i < n. Reads up to kLevelOverread levels more.
  void (*place)(const uint8_t* levels, int64_t step, int64_t n, int32_t zero, uint32_t* cells);

  // y[o * plane + i] = the end of channel o < n at position i < positions. Reads up to kCellOverread cells more.
  void (*unit)(const ByteJob& job, const ByteFinish* channels, int n, const ByteEnd& end, int64_t positions, float* y,
               int64_t plane);
};

// What follows is compiled for each instruction set apart, and must not be shared between them: static.

// Half to even, for |v| up to 2^22; never -0.
static inline float round_even(float v) {
  constexpr float kWhole = 12582912.0f;  // floats from 2^23 to 2^24 have no fraction
  return (v + kWhole) - kWhole;
}

// A NaN gives `low`.
static inline float clamp_value(float v, float low, float high) {
  v = v > low ? v : low;
  return v < high ? v : high;
}

static inline void quantize_levels(const float* x, int64_t plane, int64_t channels, int64_t pixels, float scale,
                                   int32_t zero, uint8_t* levels) {
  const float low = static_cast<float>(-zero), high = static_cast<float>(255 - zero);
  for (int64_t c = 0; c < channels; ++c) {
    const float* source = x + c * plane;
    for (int64_t p = 0; p < pixels; ++p) {
      const float steps = round_even(clamp_value(source[p] / scale, low, high));
      levels[p * channels + c] = static_cast<uint8_t>(static_cast<int32_t>(steps) + zero);
    }
  }
}

static inline void place_bytes(const uint8_t* levels, int64_t step, int64_t n, int32_t, uint32_t* cells) {
  for (int64_t i = 0; i < n; ++i) std::memcpy(cells + i, levels + i * step, 4);
}

static inline void place_pairs(const uint8_t* levels, int64_t step, int64_t n, int32_t zero, uint32_t* cells) {
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t low = static_cast<uint32_t>(levels[i * step] - zero);
    const uint32_t high = static_cast<uint32_t>(levels[i * step + 1] - zero);
    cells[i] = (low & 0xffff) | high << 16;
  }
}

static inline float finish_value(int32_t sum, const ByteFinish& f, const ByteEnd& end) {
  float v = static_cast<float>(sum + f.start) * f.scale;
  v = v + f.bias;
  if (end.rectify) v = (v < 0 ? v * f.slope : v) + f.shift_out;
  if (end.round) v = round_even(clamp_value(v * end.inverse, end.low, end.high)) * end.scale;
  return v;
}

}  // namespace bnas
