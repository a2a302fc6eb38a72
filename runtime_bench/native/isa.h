// What one instruction set provides: the few loops in which all the time goes. Everything around them (padding,
// stride, groups, threads) is written once, in conv.cpp, over this table.
//
// Pixels lie in the vector lanes. The signs of a part of the image are kept as planes of cells (see plan.h): lane i of
// a load at `offset` shows what output pixel i reads there, so nothing is ever gathered, shifted or transposed.
#pragma once

#include <cstdint>
#include <cstring>

namespace bnas {

inline constexpr int kMaxBlock = 16;  // output channels that `count` may be asked for at once
// Cells that may be read past the last position of a plane. What becomes of them is thrown away, so it does not matter
// that another task may be writing them.
inline constexpr int64_t kOverread = 256;

// One block of output channels over one image.
struct Counting {
  const void* cells;        // the planes of the block's group
  const int32_t* offsets;   // [steps]: where step s reads position 0, in cells from `cells`
  const uint32_t* weights;  // [steps, block]: weight cells
  int64_t steps;
};

// What becomes of the counts of one output channel; see `finish`.
struct Finish {
  float fan_in;  // K
  float scale, bias;
  bool rectify;                      // whether there is an activation
  float shift_in, slope, shift_out;  // 0, 1, 0 unless rectify

  // The same as act((count - middle) * step + start + residual), where the difference is exact; middle is half of K.
  // Only if `finite`: twice the scale or its sum with the bias may be no number.
  int32_t middle;
  float step, start;
  bool finite;
};

struct Isa {
  const char* name;

  int cell_bytes;      // 4: a cell is a word, 32 channels; 1: a byte
  int cells_per_word;  // planes that a word's 32 channels are spread over
  int block;           // output channels counted together, at most kMaxBlock, a divisor of 32
  int64_t strip;       // positions counted at once

  // words[p] = bits of (x[c * plane + p] < shift[c * shift_step]), c < channels <= 32, for p < pixels. NaN gives 0.
  void (*pack)(const float* x, int64_t plane, const float* shift, int64_t shift_step, int64_t channels, int64_t pixels,
               uint32_t* words);

  // Cell c of words[i * step] to cells[c * plane + i], for i < n and c < cells_per_word; cells and plane in cells.
  void (*place)(const uint32_t* words, int64_t step, int64_t n, void* cells, int64_t plane);

  // Bits of cells, shifted, join those of `target`: so many bytes of whole cells, no bit of which leaves its own.
  void (*join)(const uint8_t* cells, int shift, int64_t bytes, uint8_t* target);

  // The weight cell that `count` wants for cell `cell` of a weight word.
  uint32_t (*weight_cell)(uint32_t word, int cell);

  // counts[o * stride + i] = sum over steps s of
  //     popcount(cell at offsets[s] + first + i  xor  weight[s][o]),
  // for o < channels <= block and i < positions <= strip; `first` is a multiple of strip. Up to kOverread cells past
  // the last position are read, and up to 64 counts past the last one overwritten.
  void (*count)(const Counting& job, int64_t first, int64_t positions, int channels, int32_t* counts, int64_t stride);

  // y[i] = act((fan_in - 2 counts[i]) * scale + bias + residual[i]);
  // residual may be null, or y. act(v) = prelu(v - shift_in; slope) + shift_out, where prelu multiplies values < 0.
  void (*finish)(const Finish& channel, const int32_t* counts, const float* residual, float* y, int64_t n);

  // Null, or `count` and `finish` in one for a block: channel o, whose output plane starts at y + o * plane, ends as
  // channels[o] says. `residual` (null: none) and y point to the output pixel of position 0, `positions` is of any
  // size and starts at 0. rectify is the same in all channels.
  void (*unit)(const Counting& job, const Finish* channels, int n, int64_t positions, const float* residual, float* y,
               int64_t plane);

  // words[i] |= (counts[i] > limit) << bit
  void (*threshold)(const int32_t* counts, int32_t limit, int bit, uint32_t* words, int64_t n);

  // Rounds of xor + popcount + add on registers alone, `rounds` times; returns how many binary MACs that was (for the
  // bound that a benchmark compares with). The result must depend on the work, `*sink` receives it.
  int64_t (*bound)(int64_t rounds, uint32_t* sink);
};

// What follows is compiled for each instruction set apart, and must not be shared between them: static.

static inline void join_cells(const uint8_t* cells, int shift, int64_t bytes, uint8_t* target) {
  const auto join = [&](auto several, int64_t i) {
    auto more = several;
    std::memcpy(&several, target + i, sizeof several);
    std::memcpy(&more, cells + i, sizeof more);
    several = static_cast<decltype(several)>(several | more << shift);
    std::memcpy(target + i, &several, sizeof several);
  };
  int64_t i = 0;
  for (; i + 8 <= bytes; i += 8) join(uint64_t{}, i);
  if (i + 4 <= bytes) join(uint32_t{}, i), i += 4;
  for (; i < bytes; ++i) join(uint8_t{}, i);
}

// `finish` as the definition says it, where a channel is not `finite`.
static inline void finish_plainly(const Finish& f, const int32_t* counts, const float* residual, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    float v = (f.fan_in - 2.0f * static_cast<float>(counts[i])) * f.scale + f.bias;
    if (residual) v += residual[i];
    if (f.rectify) {
      v -= f.shift_in;
      v = (v < 0 ? v * f.slope : v) + f.shift_out;
    }
    y[i] = v;
  }
}

// `unit` as `count` and `finish` by turns, kStrip positions at a time.
template <int kBlock, int64_t kStrip>
static void unit_plainly(const Counting& job, const Finish* channels, int n, int64_t positions, const float* residual,
                         float* y, int64_t plane, decltype(Isa::count) count, decltype(Isa::finish) finish) {
  constexpr int64_t kRow = kStrip + 64;  // `count` may write so far past a strip
  int32_t counts[kBlock * kRow];
  for (int64_t first = 0; first < positions; first += kStrip) {
    const int64_t left = positions - first < kStrip ? positions - first : kStrip;
    count(job, first, left, n, counts, kRow);
    for (int o = 0; o < n; ++o) {
      const int64_t at = o * plane + first;
      finish(channels[o], counts + o * kRow, residual ? residual + at : nullptr, y + at, left);
    }
  }
}

}  // namespace bnas
