// NEON (64-bit ARM): 4 pixels of 32 channels in a register, xor with a broadcast weight word, popcount of each byte,
// add. The sums stay in bytes, four to a pixel, and are widened only when a byte might overflow.
#include <arm_neon.h>

#include "isa.h"

namespace bnas {
namespace {

constexpr int kBlock = 4;
constexpr int kLanes = 4;
// Registers of pixels x outputs counted together: 16 sums, 8 pixels and the rest fit into 32 registers. A broadcast is
// one instruction for 8 x 3 of counting, where 4 x 4 needs one for 4 x 3.
constexpr int kTile = 8;
constexpr int kOutputs = 2;
constexpr int64_t kByteSteps = 31;  // of at most 8 each that a byte can hold

void pack(const float* x, int64_t plane, const float* shift, int64_t shift_step, int64_t channels, int64_t pixels,
          uint32_t* words) {
  constexpr int kWide = 8;
  int64_t p = 0;
  for (; p + kWide * kLanes <= pixels; p += kWide * kLanes) {
    uint32x4_t word[kWide];
    for (int i = 0; i < kWide; ++i) word[i] = vdupq_n_u32(0);
    for (int64_t c = 0; c < channels; ++c) {
      const float32x4_t threshold = vdupq_n_f32(shift[c * shift_step]);
      const uint32x4_t bit = vdupq_n_u32(1u << c);
      const float* source = x + c * plane + p;
#pragma GCC unroll 8
      for (int i = 0; i < kWide; ++i) {
        const uint32x4_t negative = vcltq_f32(vld1q_f32(source + i * kLanes), threshold);
        word[i] = vorrq_u32(word[i], vandq_u32(negative, bit));
      }
    }
    for (int i = 0; i < kWide; ++i) vst1q_u32(words + p + i * kLanes, word[i]);
  }
  while (p < pixels) {
    if (pixels < kLanes) {
      uint32_t word = 0;
      for (int64_t c = 0; c < channels; ++c) {
        word |= static_cast<uint32_t>(x[c * plane + p] < shift[c * shift_step]) << c;
      }
      words[p++] = word;
      continue;
    }
    const int64_t start = p + kLanes <= pixels ? p : pixels - kLanes;  // the last pixels may be packed twice
    uint32x4_t word = vdupq_n_u32(0);
    for (int64_t c = 0; c < channels; ++c) {
      const uint32x4_t negative = vcltq_f32(vld1q_f32(x + c * plane + start), vdupq_n_f32(shift[c * shift_step]));
      word = vorrq_u32(word, vandq_u32(negative, vdupq_n_u32(1u << c)));
    }
    vst1q_u32(words + start, word);
    p = start + kLanes;
  }
}

void place(const uint32_t* words, int64_t step, int64_t n, void* cells, int64_t) {
  uint32_t* target = static_cast<uint32_t*>(cells);
  int64_t i = 0;
  if (step == 1) {
    for (; i + kLanes <= n; i += kLanes) vst1q_u32(target + i, vld1q_u32(words + i));
  } else if (step == 2) {  // reads the word after the fourth one it wants, so there must be a fifth
    for (; i + kLanes < n; i += kLanes) vst1q_u32(target + i, vld2q_u32(words + i * 2).val[0]);
  }
  for (; i < n; ++i) target[i] = words[i * step];
}

uint32_t weight_cell(uint32_t word, int) { return word; }

// Emits nothing, but makes the compiler finish 4 sums before it begins those that use the 4 of `next`. Left alone, gcc
// starts all of a step at once and runs out of registers.
inline __attribute__((always_inline)) void fence(uint8x16_t* sum, uint8x16_t* next) {
  asm volatile(""
               : "+w"(sum[0]), "+w"(sum[1]), "+w"(sum[2]), "+w"(sum[3]), "+w"(next[0]), "+w"(next[1]), "+w"(next[2]),
                 "+w"(next[3]));
}

// One step of P x O sums; the first one of a chunk needs no addition.
template <bool kFirst, int P, int O>
inline __attribute__((always_inline)) void count_step(const uint32_t* source, const uint32_t* weights,
                                                      uint8x16_t (&sum)[O][P]) {
  uint8x16_t cell[P];
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) cell[p] = vreinterpretq_u8_u32(vld1q_u32(source + p * kLanes));
  const uint32x2_t pair = vld1_u32(weights);
#pragma GCC unroll 2
  for (int o = 0; o < O; ++o) {
    const uint8x16_t weight = vreinterpretq_u8_u32(o ? vdupq_lane_u32(pair, 1) : vdupq_lane_u32(pair, 0));
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
      const uint8x16_t ones = vcntq_u8(veorq_u8(cell[p], weight));
      sum[o][p] = kFirst ? ones : vaddq_u8(sum[o][p], ones);
      if constexpr (P * O > 8) {
        const bool last = o + 1 == O && p + 1 == P;  // a fence there costs moves
        if (p % 4 == 3 && !last) fence(sum[o] + p - 3, cell + (p + 1) % P);
      }
    }
  }
}

// `weights` are those of the first of O outputs.
template <int P, int O>
void count_tile(const Counting& job, int64_t position, const uint32_t* weights, int32_t* counts, int64_t stride) {
  const uint32_t* cells = static_cast<const uint32_t*>(job.cells) + position;
  const int32_t* offset = job.offsets;
  const int32_t* const end = offset + job.steps;
  for (bool first = true; offset != end; first = false) {
    const int32_t* const chunk_end = end - offset > kByteSteps ? offset + kByteSteps : end;
    uint8x16_t sum[O][P];
    count_step<true, P, O>(cells + *offset, weights, sum);
    weights += kBlock;
    for (++offset; offset != chunk_end; ++offset, weights += kBlock) {
      count_step<false, P, O>(cells + *offset, weights, sum);
    }
#pragma GCC unroll 2
    for (int o = 0; o < O; ++o) {
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) {
        int32_t* target = counts + o * stride + p * kLanes;
        const uint16x8_t halves = vpaddlq_u8(sum[o][p]);
        const uint32x4_t words =
            first ? vpaddlq_u16(halves) : vpadalq_u16(vreinterpretq_u32_s32(vld1q_s32(target)), halves);
        vst1q_s32(target, vreinterpretq_s32_u32(words));
      }
    }
  }
}

template <int O>
void count_outputs(const Counting& job, int64_t first, int64_t positions, const uint32_t* weights, int32_t* counts,
                   int64_t stride) {
  int64_t vectors = (positions + kLanes - 1) / kLanes;
  while (vectors > 0) {  // some junk past the end costs less than a small tile
    const int tile = vectors > 4 ? kTile : vectors > 2 ? 4 : vectors == 2 ? 2 : 1;
    if (tile == kTile) count_tile<kTile, O>(job, first, weights, counts, stride);
    if (tile == 4) count_tile<4, O>(job, first, weights, counts, stride);
    if (tile == 2) count_tile<2, O>(job, first, weights, counts, stride);
    if (tile == 1) count_tile<1, O>(job, first, weights, counts, stride);
    first += tile * kLanes;
    counts += tile * kLanes;
    vectors -= tile;
  }
}

void count(const Counting& job, int64_t first, int64_t positions, int channels, int32_t* counts, int64_t stride) {
  for (int o = 0; o < channels; o += kOutputs) {
    if (channels - o >= kOutputs) {
      count_outputs<kOutputs>(job, first, positions, job.weights + o, counts + o * stride, stride);
    } else {
      count_outputs<1>(job, first, positions, job.weights + o, counts + o * stride, stride);
    }
  }
}

template <bool kResidual, bool kRectify>
void finish_as(const Finish& f, const int32_t* counts, const float* residual, float* y, int64_t n) {
  const float32x4_t fan_in = vdupq_n_f32(f.fan_in), two = vdupq_n_f32(2.0f), scale = vdupq_n_f32(f.scale);
  const float32x4_t bias = vdupq_n_f32(f.bias), shift_in = vdupq_n_f32(f.shift_in), slope = vdupq_n_f32(f.slope);
  const float32x4_t shift_out = vdupq_n_f32(f.shift_out);
  const auto value = [&](int32x4_t sum, float32x4_t added) {
    float32x4_t v = vfmsq_f32(fan_in, two, vcvtq_f32_s32(sum));
    v = vfmaq_f32(bias, v, scale);
    if (kResidual) v = vaddq_f32(v, added);
    if (kRectify) {
      v = vsubq_f32(v, shift_in);
      v = vbslq_f32(vcltzq_f32(v), vmulq_f32(v, slope), v);
      v = vaddq_f32(v, shift_out);
    }
    return v;
  };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const float32x4_t added = kResidual ? vld1q_f32(residual + i) : vdupq_n_f32(0);
    vst1q_f32(y + i, value(vld1q_s32(counts + i), added));
  }
  if (i < n) {
    int32_t last_counts[kLanes] = {};
    float last[kLanes] = {};
    for (int64_t j = i; j < n; ++j) {
      last_counts[j - i] = counts[j];
      if (kResidual) last[j - i] = residual[j];
    }
    vst1q_f32(last, value(vld1q_s32(last_counts), vld1q_f32(last)));
    for (int64_t j = i; j < n; ++j) y[j] = last[j - i];
  }
}

void finish(const Finish& f, const int32_t* counts, const float* residual, float* y, int64_t n) {
  if (residual) {
    return f.rectify ? finish_as<true, true>(f, counts, residual, y, n)
                     : finish_as<true, false>(f, counts, residual, y, n);
  }
  return f.rectify ? finish_as<false, true>(f, counts, residual, y, n)
                   : finish_as<false, false>(f, counts, residual, y, n);
}

void threshold(const int32_t* counts, int32_t limit, int bit, uint32_t* words, int64_t n) {
  const int32x4_t most = vdupq_n_s32(limit);
  const uint32x4_t one = vdupq_n_u32(1u << bit);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const uint32x4_t above = vcgtq_s32(vld1q_s32(counts + i), most);
    vst1q_u32(words + i, vorrq_u32(vld1q_u32(words + i), vandq_u32(above, one)));
  }
  for (; i < n; ++i) words[i] |= static_cast<uint32_t>(counts[i] > limit) << bit;
}

int64_t bound(int64_t rounds, uint32_t* sink) {
  constexpr int kSums = 16;
  uint8x16_t sum[kSums];
  const uint8x16_t word = vreinterpretq_u8_u32(vdupq_n_u32(*sink));
#pragma GCC unroll 16
  for (int i = 0; i < kSums; ++i) sum[i] = vaddq_u8(word, vdupq_n_u8(static_cast<uint8_t>(i)));
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 4
    for (int first = 0; first < kSums; first += 4) {
#pragma GCC unroll 4
      for (int i = first; i < first + 4; ++i) sum[i] = vaddq_u8(sum[i], vcntq_u8(veorq_u8(sum[i], word)));
      fence(sum + first, sum + (first + 4) % kSums);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kSums; ++i) *sink += vaddlvq_u8(sum[i]);
  return rounds * kSums * kLanes * 32;
}

}  // namespace

extern const Isa kNeon;
const Isa kNeon = {"neon",     4,           1,     kBlock, 8 * kTile* kLanes, pack,      place,
                   join_cells, weight_cell, count, finish, nullptr,           threshold, bound};

}  // namespace bnas
