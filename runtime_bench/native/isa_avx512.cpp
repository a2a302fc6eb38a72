// AVX-512 with VPOPCNTDQ: 16 pixels of 32 channels in a register, xor with a broadcast weight word, popcount, add.
#include <immintrin.h>

#include "isa.h"

namespace bnas {
namespace {

constexpr int kBlock = 8;
constexpr int kLanes = 16;
constexpr int kTile = 3;  // registers of pixels: 3 x 8 sums, 3 pixels and the rest fit into 32 registers

void pack(const float* x, int64_t plane, const float* shift, int64_t shift_step, int64_t channels, int64_t pixels,
          uint32_t* words) {
  int64_t p = 0;
  for (; p + 4 * kLanes <= pixels; p += 4 * kLanes) {
    __m512i word[4] = {};
    __m512i bit = _mm512_set1_epi32(1);
    for (int64_t c = 0; c < channels; ++c) {
      const __m512 threshold = _mm512_set1_ps(shift[c * shift_step]);
      const float* source = x + c * plane + p;
      for (int i = 0; i < 4; ++i) {
        const __mmask16 negative = _mm512_cmp_ps_mask(_mm512_loadu_ps(source + i * kLanes), threshold, _CMP_LT_OQ);
        word[i] = _mm512_mask_or_epi32(word[i], negative, word[i], bit);
      }
      bit = _mm512_slli_epi32(bit, 1);
    }
    for (int i = 0; i < 4; ++i) _mm512_storeu_si512(words + p + i * kLanes, word[i]);
  }
  for (; p < pixels; p += kLanes) {
    const __mmask16 rest = pixels - p >= kLanes ? 0xffff : static_cast<__mmask16>((1u << (pixels - p)) - 1);
    __m512i word = _mm512_setzero_si512();
    __m512i bit = _mm512_set1_epi32(1);
    for (int64_t c = 0; c < channels; ++c) {
      const __m512 value = _mm512_maskz_loadu_ps(rest, x + c * plane + p);
      const __mmask16 negative = _mm512_cmp_ps_mask(value, _mm512_set1_ps(shift[c * shift_step]), _CMP_LT_OQ);
      word = _mm512_mask_or_epi32(word, negative, word, bit);
      bit = _mm512_slli_epi32(bit, 1);
    }
    _mm512_mask_storeu_epi32(words + p, rest, word);
  }
}

void place(const uint32_t* words, int64_t step, int64_t n, void* cells, int64_t) {
  uint32_t* target = static_cast<uint32_t*>(cells);
  if (step == 1) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) _mm512_storeu_si512(target + i, _mm512_loadu_si512(words + i));
    const __mmask16 rest = static_cast<__mmask16>((1u << (n - i)) - 1);
    _mm512_mask_storeu_epi32(target + i, rest, _mm512_maskz_loadu_epi32(rest, words + i));
    return;
  }
  for (int64_t i = 0; i < n; ++i) target[i] = words[i * step];
}

uint32_t weight_cell(uint32_t word, int) { return word; }

template <int P, int O>
inline __attribute__((always_inline)) int32_t* count_tile(const Counting& job, int64_t position, const uint16_t* valid,
                                                          int32_t* counts, int64_t stride) {
  const uint32_t* cells = static_cast<const uint32_t*>(job.cells) + position;
  const uint32_t* weights = job.weights;
  __m512i sum[O][P];
  for (int o = 0; o < O; ++o) {
    for (int p = 0; p < P; ++p) sum[o][p] = _mm512_setzero_si512();
  }
  const int32_t* end = job.offsets + job.steps;
  for (const int32_t* offset = job.offsets; offset != end; ++offset, weights += kBlock) {
    const uint32_t* source = cells + *offset;
    __m512i cell[P];
    for (int p = 0; p < P; ++p) cell[p] = _mm512_loadu_si512(source + p * kLanes);
#pragma GCC unroll 8
    for (int o = 0; o < O; ++o) {
      const __m512i weight = _mm512_set1_epi32(static_cast<int>(weights[o]));
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) {
        sum[o][p] = _mm512_add_epi32(sum[o][p], _mm512_popcnt_epi32(_mm512_xor_si512(cell[p], weight)));
      }
    }
  }
  for (int p = 0; p < P; ++p) {
    const __mmask16 keep = valid[p];
    for (int o = 0; o < O; ++o) {
      _mm512_storeu_si512(counts + o * stride, _mm512_maskz_compress_epi32(keep, sum[o][p]));
    }
    counts += __builtin_popcount(keep);
  }
  return counts;
}

template <int O>
void count_block(const Counting& job, int64_t first, int64_t positions, int32_t* counts, int64_t stride) {
  int64_t vectors = (positions + kLanes - 1) / kLanes;
  const uint16_t* valid = job.valid;
  while (vectors > 0) {
    // 4 are better done as 2 and 2 than as 3 and 1
    const int64_t tile = vectors == 4 ? 2 : vectors < kTile ? vectors : kTile;
    if (tile == 3) counts = count_tile<3, O>(job, first, valid, counts, stride);
    if (tile == 2) counts = count_tile<2, O>(job, first, valid, counts, stride);
    if (tile == 1) counts = count_tile<1, O>(job, first, valid, counts, stride);
    first += tile * kLanes;
    valid += tile;
    vectors -= tile;
  }
}

void count(const Counting& job, int64_t first, int64_t positions, int channels, int32_t* counts, int64_t stride) {
  if (channels > 4) return count_block<8>(job, first, positions, counts, stride);
  if (channels > 1) return count_block<4>(job, first, positions, counts, stride);
  return count_block<1>(job, first, positions, counts, stride);
}

template <bool kResidual, bool kRectify>
void finish_as(const Finish& f, const int32_t* counts, const float* residual, float* y, int64_t n) {
  const __m512 fan_in = _mm512_set1_ps(f.fan_in), two = _mm512_set1_ps(2.0f);
  const __m512 scale = _mm512_set1_ps(f.scale), bias = _mm512_set1_ps(f.bias);
  const __m512 shift_in = _mm512_set1_ps(f.shift_in), slope = _mm512_set1_ps(f.slope);
  const __m512 shift_out = _mm512_set1_ps(f.shift_out);
  const auto value = [&](__m512i sum, __m512 added) {
    __m512 v = _mm512_fnmadd_ps(two, _mm512_cvtepi32_ps(sum), fan_in);
    v = _mm512_fmadd_ps(v, scale, bias);
    if (kResidual) v = _mm512_add_ps(v, added);
    if (kRectify) {
      v = _mm512_sub_ps(v, shift_in);
      v = _mm512_mask_mul_ps(v, _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_LT_OQ), v, slope);
      v = _mm512_add_ps(v, shift_out);
    }
    return v;
  };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const __m512 added = kResidual ? _mm512_loadu_ps(residual + i) : _mm512_setzero_ps();
    _mm512_storeu_ps(y + i, value(_mm512_loadu_si512(counts + i), added));
  }
  if (i < n) {
    const __mmask16 rest = static_cast<__mmask16>((1u << (n - i)) - 1);
    const __m512 added = kResidual ? _mm512_maskz_loadu_ps(rest, residual + i) : _mm512_setzero_ps();
    _mm512_mask_storeu_ps(y + i, rest, value(_mm512_maskz_loadu_epi32(rest, counts + i), added));
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
  const __m512i most = _mm512_set1_epi32(limit), one = _mm512_set1_epi32(static_cast<int>(1u << bit));
  for (int64_t i = 0; i < n; i += kLanes) {
    const __mmask16 rest = n - i >= kLanes ? 0xffff : static_cast<__mmask16>((1u << (n - i)) - 1);
    const __m512i word = _mm512_maskz_loadu_epi32(rest, words + i);
    const __mmask16 above = _mm512_mask_cmpgt_epi32_mask(rest, _mm512_maskz_loadu_epi32(rest, counts + i), most);
    _mm512_mask_storeu_epi32(words + i, rest, _mm512_mask_or_epi32(word, above, word, one));
  }
}

int64_t bound(int64_t rounds, uint32_t* sink) {
  constexpr int kSums = 24;
  __m512i sum[kSums];
  for (int i = 0; i < kSums; ++i) sum[i] = _mm512_set1_epi32(static_cast<int>(*sink) + i);
  __m512i word = _mm512_set1_epi32(static_cast<int>(*sink));
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 24
    for (int i = 0; i < kSums; ++i) {
      sum[i] = _mm512_add_epi32(sum[i], _mm512_popcnt_epi32(_mm512_xor_si512(sum[i], word)));
    }
  }
  for (int i = 0; i < kSums; ++i) *sink += static_cast<uint32_t>(_mm512_reduce_add_epi32(sum[i]));
  return rounds * kSums * kLanes * 32;
}

}  // namespace

extern const Isa kAvx512;
const Isa kAvx512 = {"avx512", 4,     1,     kBlock, 5 * kTile * kLanes, true, pack,
                     place,    weight_cell, count, finish, threshold,          bound};

}  // namespace bnas
