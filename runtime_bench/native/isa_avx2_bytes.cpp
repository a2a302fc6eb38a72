// AVX2: pairs of 16 bits, because products of 8 bits are only added up with saturation there.
#include <immintrin.h>

#include "isa_bytes.h"

namespace bnas {
namespace {

constexpr int kBlock = 4;
constexpr int kLanes = 8;
constexpr int kRegisters = 2;  // of positions: 4 x 2 sums, 2 of cells, a weight and a product fit into 16

inline __attribute__((always_inline)) __m256 round_even(__m256 v) {
  const __m256 whole = _mm256_set1_ps(12582912.0f);
  return _mm256_sub_ps(_mm256_add_ps(v, whole), whole);
}

// max and min give their second argument for NaN.
inline __attribute__((always_inline)) __m256 clamp(__m256 v, __m256 low, __m256 high) {
  return _mm256_min_ps(_mm256_max_ps(v, low), high);
}

inline __attribute__((always_inline)) __m256 finish(__m256i sum, const ByteFinish& f, const ByteEnd& end) {
  __m256 v = _mm256_mul_ps(_mm256_cvtepi32_ps(sum), _mm256_set1_ps(f.scale));
  v = _mm256_add_ps(v, _mm256_set1_ps(f.bias));
  if (end.rectify) {
    const __m256 negative = _mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_LT_OQ);
    v = _mm256_blendv_ps(v, _mm256_mul_ps(v, _mm256_set1_ps(f.slope)), negative);
    v = _mm256_add_ps(v, _mm256_set1_ps(f.shift_out));
  }
  if (end.round) {
    v = clamp(_mm256_mul_ps(v, _mm256_set1_ps(end.inverse)), _mm256_set1_ps(end.low), _mm256_set1_ps(end.high));
    v = _mm256_mul_ps(round_even(v), _mm256_set1_ps(end.scale));
  }
  return v;
}

// P registers of positions, of which `count` positions are written.
template <int P>
inline __attribute__((always_inline)) void tile(const ByteJob& job, const ByteFinish* channels, int n,
                                                const ByteEnd& end, int64_t first, int64_t count, float* y,
                                                int64_t plane) {
  __m256i sum[kBlock][P];
#pragma GCC unroll 4
  for (int o = 0; o < kBlock; ++o) {
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p) sum[o][p] = _mm256_setzero_si256();
  }
  const uint32_t* weights = job.weights;
  for (int64_t s = 0; s < job.steps; ++s, weights += kBlock) {
    const uint32_t* cells = job.cells + job.offsets[s] + first;
    __m256i cell[P];
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p) cell[p] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(cells + p * kLanes));
#pragma GCC unroll 4
    for (int o = 0; o < kBlock; ++o) {
      const __m256i weight = _mm256_set1_epi32(static_cast<int>(weights[o]));
#pragma GCC unroll 2
      for (int p = 0; p < P; ++p) sum[o][p] = _mm256_add_epi32(sum[o][p], _mm256_madd_epi16(cell[p], weight));
    }
  }
#pragma GCC unroll 4
  for (int o = 0; o < kBlock; ++o) {
    if (o >= n) break;
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p) {
      const __m256 v = finish(sum[o][p], channels[o], end);
      float* target = y + o * plane + first + p * kLanes;
      if (count >= (p + 1) * kLanes) {
        _mm256_storeu_ps(target, v);
        continue;
      }
      const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
      const __m256i kept = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count - p * kLanes)), lanes);
      _mm256_maskstore_ps(target, kept, v);
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

extern const ByteIsa kAvx2Bytes = {2, kBlock, quantize_levels, place_pairs, unit};

}  // namespace bnas
