// NEON (64-bit ARM, without the dot products of later versions): pairs of 16 bits. A register of sums holds two
// positions, whose pairs are added up at the end.
#include <arm_neon.h>

#include "isa_bytes.h"

namespace bnas {
namespace {

constexpr int kBlock = 4;
constexpr int kLanes = 4;      // positions in a register of cells, and in two of sums
constexpr int kRegisters = 2;  // of cells: 4 x 2 x 2 sums, 2 of cells and a weight fit into 32

inline float32x4_t round_even(float32x4_t v) {
  const float32x4_t whole = vdupq_n_f32(12582912.0f);
  return vsubq_f32(vaddq_f32(v, whole), whole);
}

inline float32x4_t finish(int32x4_t sum, const ByteFinish& f, const ByteEnd& end) {
  float32x4_t v = vmulq_f32(vcvtq_f32_s32(sum), vdupq_n_f32(f.scale));
  v = vaddq_f32(v, vdupq_n_f32(f.bias));
  if (end.rectify) {
    v = vbslq_f32(vcltzq_f32(v), vmulq_f32(v, vdupq_n_f32(f.slope)), v);
    v = vaddq_f32(v, vdupq_n_f32(f.shift_out));
  }
  if (end.round) {  // of a number and NaN, vmaxnm gives the number
    v = vmaxnmq_f32(vmulq_f32(v, vdupq_n_f32(end.inverse)), vdupq_n_f32(end.low));
    v = vmulq_f32(round_even(vminq_f32(v, vdupq_n_f32(end.high))), vdupq_n_f32(end.scale));
  }
  return v;
}

// P registers of positions, of which `count` positions are written.
template <int P>
inline __attribute__((always_inline)) void tile(const ByteJob& job, const ByteFinish* channels, int n,
                                                const ByteEnd& end, int64_t first, int64_t count, float* y,
                                                int64_t plane) {
  int32x4_t low[kBlock][P], high[kBlock][P];
#pragma GCC unroll 4
  for (int o = 0; o < kBlock; ++o) {
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p) low[o][p] = high[o][p] = vdupq_n_s32(0);
  }
  const uint32_t* weights = job.weights;
  for (int64_t s = 0; s < job.steps; ++s, weights += kBlock) {
    const uint32_t* cells = job.cells + job.offsets[s] + first;
    int16x8_t cell[P];
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p) cell[p] = vreinterpretq_s16_u32(vld1q_u32(cells + p * kLanes));
#pragma GCC unroll 4
    for (int o = 0; o < kBlock; ++o) {
      const int16x8_t weight = vreinterpretq_s16_u32(vdupq_n_u32(weights[o]));
#pragma GCC unroll 2
      for (int p = 0; p < P; ++p) {
        low[o][p] = vmlal_s16(low[o][p], vget_low_s16(cell[p]), vget_low_s16(weight));
        high[o][p] = vmlal_high_s16(high[o][p], cell[p], weight);
      }
    }
  }
#pragma GCC unroll 4
  for (int o = 0; o < kBlock; ++o) {
    if (o >= n) break;
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p) {
      const float32x4_t v = finish(vpaddq_s32(low[o][p], high[o][p]), channels[o], end);
      float* target = y + o * plane + first + p * kLanes;
      if (count >= (p + 1) * kLanes) {
        vst1q_f32(target, v);
        continue;
      }
      float lanes[kLanes];
      vst1q_f32(lanes, v);
      for (int64_t i = 0; i < count - p * kLanes; ++i) target[i] = lanes[i];
    }
  }
}

void unit(const ByteJob& job, const ByteFinish* channels, int n, const ByteEnd& end, int64_t positions, float* y,
          int64_t plane) {
  constexpr int64_t kTile = kRegisters * kLanes;
  int64_t first = 0;
  for (; first + kTile <= positions; first += kTile) tile<kRegisters>(job, channels, n, end, first, kTile, y, plane);
  for (; first < positions; first += kLanes) tile<1>(job, channels, n, end, first, positions - first, y, plane);
}

}  // namespace

extern const ByteIsa kNeonBytes = {2, kBlock, quantize_levels, place_pairs, unit};

}  // namespace bnas
