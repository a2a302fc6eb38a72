// AVX-512 with VNNI: four products of 8 bits are added to a lane at once, without saturating. With VBMI: any bytes of
// two registers are brought into one.
#include <immintrin.h>

#include "isa_bytes.h"

namespace bnas {
namespace {

constexpr int kBlock = 8;
constexpr int kLanes = 16;
constexpr int kRegisters = 3;  // of positions: 8 x 3 sums, 3 of cells and a weight fit into 32

inline __attribute__((always_inline)) __m512i broadcast(const uint32_t* word) {
  __m512i value;
  __asm__("vpbroadcastd %1, %0" : "=v"(value) : "m"(*word));
  return value;
}

// As _mm512_dpbusd_epi32; but gcc then copies sums around the loop, and spills.
inline __attribute__((always_inline)) void add_products(__m512i& sum, __m512i cell, __m512i weight) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(cell), "v"(weight));
}

__mmask16 first_lanes(int64_t n) { return n >= kLanes ? 0xffff : static_cast<__mmask16>((1u << n) - 1); }

inline __attribute__((always_inline)) __m512 round_even(__m512 v) {
  const __m512 whole = _mm512_set1_ps(12582912.0f);
  return _mm512_sub_ps(_mm512_add_ps(v, whole), whole);
}

// max and min give their second argument for NaN.
inline __attribute__((always_inline)) __m512 clamp(__m512 v, __m512 low, __m512 high) {
  return _mm512_min_ps(_mm512_max_ps(v, low), high);
}

// What rounds x / scale to levels. A division takes as long as all the rest, so it is only made where the product with
// 1 / scale, which may be off by 2^-13, lies close to the middle between two levels.
struct Quantizer {
  Quantizer(float scale, int32_t zero)
      : scale_(_mm512_set1_ps(scale)),
        inverse_(_mm512_set1_ps(1.0f / scale)),
        low_(_mm512_set1_ps(static_cast<float>(-zero))),
        high_(_mm512_set1_ps(static_cast<float>(255 - zero))),
        zero_(_mm512_set1_epi32(zero)) {}

  inline __attribute__((always_inline)) __m512i levels(__m512 x) const {
    const __m512 steps = clamp(_mm512_mul_ps(x, inverse_), low_, high_);
    __m512 whole = round_even(steps);
    const __m512 off = _mm512_abs_ps(_mm512_sub_ps(steps, whole));
    if (_mm512_cmp_ps_mask(off, _mm512_set1_ps(0.499f), _CMP_GT_OQ)) {
      whole = round_even(clamp(_mm512_div_ps(x, scale_), low_, high_));
    }
    return _mm512_add_epi32(_mm512_cvtps_epi32(whole), zero_);
  }

 private:
  __m512 scale_, inverse_, low_, high_;
  __m512i zero_;
};

inline __attribute__((always_inline)) __m512 finish(__m512i sum, const ByteFinish& f, const ByteEnd& end) {
  __m512 v = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(f.scale));
  v = _mm512_add_ps(v, _mm512_set1_ps(f.bias));
  if (end.rectify) {
    const __mmask16 negative = _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_LT_OQ);
    v = _mm512_mask_mul_ps(v, negative, v, _mm512_set1_ps(f.slope));
    v = _mm512_add_ps(v, _mm512_set1_ps(f.shift_out));
  }
  if (end.round) {
    v = clamp(_mm512_mul_ps(v, _mm512_set1_ps(end.inverse)), _mm512_set1_ps(end.low), _mm512_set1_ps(end.high));
    v = _mm512_mul_ps(round_even(v), _mm512_set1_ps(end.scale));
  }
  return v;
}

// P registers of positions, of which the last has lanes `kept`.
template <int P>
inline __attribute__((always_inline)) void tile(const ByteJob& job, const ByteFinish* channels, int n,
                                                const ByteEnd& end, int64_t first, __mmask16 kept, float* y,
                                                int64_t plane) {
  __m512i sum[kBlock][P];
#pragma GCC unroll 8
  for (int o = 0; o < kBlock; ++o) {
    const __m512i start = _mm512_set1_epi32(channels[o < n ? o : 0].start);
#pragma GCC unroll 3
    for (int p = 0; p < P; ++p) sum[o][p] = start;
  }
  const uint32_t* weights = job.weights;
  for (int64_t s = 0; s < job.steps; ++s, weights += kBlock) {
    const uint32_t* cells = job.cells + job.offsets[s] + first;
    __m512i cell[P];
#pragma GCC unroll 3
    for (int p = 0; p < P; ++p) cell[p] = _mm512_loadu_si512(cells + p * kLanes);
#pragma GCC unroll 8
    for (int o = 0; o < kBlock; ++o) {
      const __m512i weight = broadcast(weights + o);
#pragma GCC unroll 3
      for (int p = 0; p < P; ++p) add_products(sum[o][p], cell[p], weight);
    }
  }
#pragma GCC unroll 8
  for (int o = 0; o < kBlock; ++o) {
    if (o >= n) break;
#pragma GCC unroll 3
    for (int p = 0; p < P; ++p) {
      const __m512 v = finish(sum[o][p], channels[o], end);
      float* target = y + o * plane + first + p * kLanes;
      if (p + 1 < P) {
        _mm512_storeu_ps(target, v);
      } else {
        _mm512_mask_storeu_ps(target, kept, v);
      }
    }
  }
}

void quantize(const float* x, int64_t plane, int64_t channels, int64_t pixels, float scale, int32_t zero,
              uint8_t* levels) {
  if (channels > 4) return quantize_levels(x, plane, channels, pixels, scale, zero, levels);
  alignas(64) uint8_t order[64] = {};  // the bytes that are kept of 16 pixels of 4 channels
  for (int64_t i = 0; i < kLanes * channels; ++i) order[i] = static_cast<uint8_t>(i / channels * 4 + i % channels);
  const __m512i kept = _mm512_load_si512(order);
  const Quantizer quantizer(scale, zero);
  for (int64_t p = 0; p < pixels; p += kLanes) {
    const __mmask16 lanes = first_lanes(pixels - p);
    __m512i word = _mm512_setzero_si512();
    for (int64_t c = channels; c-- > 0;) {
      word = _mm512_or_si512(_mm512_slli_epi32(word, 8),
                             quantizer.levels(_mm512_maskz_loadu_ps(lanes, x + c * plane + p)));
    }
    const int64_t bytes = (pixels - p < kLanes ? pixels - p : kLanes) * channels;
    const __mmask64 written = bytes == 64 ? ~uint64_t{0} : (uint64_t{1} << bytes) - 1;
    _mm512_mask_storeu_epi8(levels + p * channels, written, _mm512_permutexvar_epi8(kept, word));
  }
}

void place(const uint8_t* levels, int64_t step, int64_t n, int32_t zero, uint32_t* cells) {
  if ((kLanes - 1) * step + 4 > 128) return place_bytes(levels, step, n, zero, cells);
  alignas(64) uint8_t order[64];
  for (int64_t i = 0; i < 64; ++i) order[i] = static_cast<uint8_t>(i / 4 * step + i % 4);
  const __m512i from = _mm512_load_si512(order);
  for (int64_t i = 0; i < n; i += kLanes, levels += kLanes * step) {
    const __m512i low = _mm512_loadu_si512(levels), high = _mm512_loadu_si512(levels + 64);
    _mm512_mask_storeu_epi32(cells + i, first_lanes(n - i), _mm512_permutex2var_epi8(low, from, high));
  }
}

void unit(const ByteJob& job, const ByteFinish* channels, int n, const ByteEnd& end, int64_t positions, float* y,
          int64_t plane) {
  int64_t first = 0;
  for (; first + kRegisters * kLanes <= positions; first += kRegisters * kLanes) {
    tile<kRegisters>(job, channels, n, end, first, 0xffff, y, plane);
  }
  if (first + 2 * kLanes <= positions) {
    tile<2>(job, channels, n, end, first, 0xffff, y, plane);
    first += 2 * kLanes;
  }
  for (; first < positions; first += kLanes) {
    tile<1>(job, channels, n, end, first, first_lanes(positions - first), y, plane);
  }
}

}  // namespace

extern const ByteIsa kAvx512Bytes = {4, kBlock, quantize, place, unit};

}  // namespace bnas
