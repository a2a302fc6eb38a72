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

// Sums start here: the bits of 2^23 as a float, so that `finish` may take a sum for the float 2^23 + count.
constexpr int32_t kBase = 0x4b000000;

// Two words a step. A plain sum takes xor, popcount, add for each word; adding both words into a register of
// ones first, and counting only what it carries, takes 5 instructions for two:
//   half = ones ^ a ^ u      next = half ^ b ^ v      carry = majority(ones, a ^ u, b ^ v) = f(ones, half, next)
constexpr int kXor3 = 0x96;   // x ^ y ^ z
constexpr int kCarry = 0x5c;  // of half, ones, next

inline __attribute__((always_inline)) __m512i broadcast(const uint32_t* weight) {
  __m512i value;
  __asm__("vpbroadcastd %1, %0" : "=v"(value) : "m"(*weight));
  return value;
}

template <int P, int O, bool kJunk>
inline __attribute__((always_inline)) void count_tile(const Counting& job, const uint32_t* weights, int64_t position,
                                                      const uint16_t* valid, int32_t* counts, int64_t stride) {
  const uint32_t* cells = static_cast<const uint32_t*>(job.cells) + position;
  __m512i twos[O][P], ones[O][P];
#pragma GCC unroll 8
  for (int o = 0; o < O; ++o) {
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
      twos[o][p] = _mm512_set1_epi32(kBase / 2);
      ones[o][p] = _mm512_setzero_si512();
    }
  }
  const int32_t* offset = job.offsets;
  const int32_t* end = offset + (job.steps & ~int64_t{1});
  for (; offset != end; offset += 2, weights += 2 * kBlock) {
    const uint32_t* first = cells + offset[0];
    const uint32_t* second = cells + offset[1];
    __m512i a[P], b[P];
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
      a[p] = _mm512_loadu_si512(first + p * kLanes);
      b[p] = _mm512_loadu_si512(second + p * kLanes);
    }
#pragma GCC unroll 8
    for (int o = 0; o < O; ++o) {
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) {
        // Loading the weight anew for each register of pixels leaves it free to be overwritten: no moves.
        __m512i half = broadcast(weights + o), next = broadcast(weights + kBlock + o);
        half = _mm512_ternarylogic_epi32(half, ones[o][p], a[p], kXor3);
        next = _mm512_ternarylogic_epi32(next, half, b[p], kXor3);
        half = _mm512_ternarylogic_epi32(half, ones[o][p], next, kCarry);
        ones[o][p] = next;
        twos[o][p] = _mm512_add_epi32(twos[o][p], _mm512_popcnt_epi32(half));
        __asm__ volatile("" : "+v"(twos[o][p]), "+v"(ones[o][p]));  // else gcc interleaves the outputs and spills
      }
    }
  }
  if (job.steps & 1) {
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
      const __m512i a = _mm512_loadu_si512(cells + *end + p * kLanes);
#pragma GCC unroll 8
      for (int o = 0; o < O; ++o) {
        const __m512i differ = _mm512_xor_si512(a, _mm512_set1_epi32(static_cast<int>(weights[o])));
        const __m512i carry = _mm512_and_si512(ones[o][p], differ);
        ones[o][p] = _mm512_xor_si512(ones[o][p], differ);
        twos[o][p] = _mm512_add_epi32(twos[o][p], _mm512_popcnt_epi32(carry));
      }
    }
  }
#pragma GCC unroll 8
  for (int o = 0; o < O; ++o) {
    int32_t* target = counts + o * stride;
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
      const __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(twos[o][p], 1), _mm512_popcnt_epi32(ones[o][p]));
      _mm512_storeu_si512(target, kJunk ? _mm512_maskz_compress_epi32(valid[p], sum) : sum);
      target += kJunk ? __builtin_popcount(valid[p]) : kLanes;
    }
  }
}

template <int P, bool kJunk>
inline __attribute__((always_inline)) void count_tiles(const Counting& job, int64_t position, const uint16_t* valid,
                                                       int channels, int32_t* counts, int64_t stride) {
  for (int o = 0; o < channels; o += 4) {
    count_tile<P, 4, kJunk>(job, job.weights + o, position, valid, counts + o * stride, stride);
  }
}

template <bool kJunk>
void count_strip(const Counting& job, int64_t first, int64_t positions, int channels, int32_t* counts,
                 int64_t stride) {
  const int64_t vectors = (positions + kLanes - 1) / kLanes;
  for (int64_t i = 0; i < vectors; i += kTile) {
    const uint16_t* valid = kJunk ? job.valid + i : nullptr;
    const int64_t position = first + i * kLanes, left = vectors - i;
    if (left >= kTile) {
      count_tiles<kTile, kJunk>(job, position, valid, channels, counts, stride);
    } else if (left == 2) {
      count_tiles<2, kJunk>(job, position, valid, channels, counts, stride);
    } else {
      count_tiles<1, kJunk>(job, position, valid, channels, counts, stride);
    }
    for (int p = 0; p < kTile && p < left; ++p) counts += kJunk ? __builtin_popcount(valid[p]) : kLanes;
  }
}

void count(const Counting& job, int64_t first, int64_t positions, int channels, int32_t* counts, int64_t stride) {
  return job.junk ? count_strip<true>(job, first, positions, channels, counts, stride)
                   : count_strip<false>(job, first, positions, channels, counts, stride);
}

template <bool kResidual, bool kRectify, bool kShift>
void finish_as(const Finish& f, const int32_t* counts, const float* residual, float* y, int64_t n) {
  // (K - 2 count) * scale + bias, from f = 2^23 + count: (f - (2^23 + K / 2)) * (-2 scale) + bias, where the difference
  // is exact; the half of an odd K goes into the bias. The shift in front of the activation goes there too.
  const int32_t half = static_cast<int32_t>(f.fan_in) / 2;
  const bool odd = static_cast<int32_t>(f.fan_in) % 2;
  const __m512 middle = _mm512_set1_ps(8388608.0f + static_cast<float>(half)), scale = _mm512_set1_ps(-2.0f * f.scale);
  const __m512 bias = _mm512_set1_ps((odd ? f.bias + f.scale : f.bias) - (kRectify ? f.shift_in : 0.0f));
  const __m512 slope = _mm512_set1_ps(f.slope), shift_out = _mm512_set1_ps(f.shift_out);
  const auto value = [&](__m512i sum, __m512 added) {
    __m512 v = _mm512_fmadd_ps(_mm512_sub_ps(_mm512_castsi512_ps(sum), middle), scale, bias);
    if (kResidual) v = _mm512_add_ps(v, added);
    if (kRectify) {
      v = _mm512_mask_mul_ps(v, _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_LT_OQ), v, slope);
      if (kShift) v = _mm512_add_ps(v, shift_out);
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

template <bool kResidual>
void finish_with(const Finish& f, const int32_t* counts, const float* residual, float* y, int64_t n) {
  if (!f.rectify) return finish_as<kResidual, false, false>(f, counts, residual, y, n);
  return f.shift_out == 0 ? finish_as<kResidual, true, false>(f, counts, residual, y, n)
                          : finish_as<kResidual, true, true>(f, counts, residual, y, n);
}

// As the definition says it, for a scale whose double is no number.
void finish_plainly(const Finish& f, const int32_t* counts, const float* residual, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    float v = (f.fan_in - 2.0f * static_cast<float>(counts[i] - kBase)) * f.scale + f.bias;
    if (residual) v += residual[i];
    if (f.rectify) {
      v -= f.shift_in;
      v = (v < 0 ? v * f.slope : v) + f.shift_out;
    }
    y[i] = v;
  }
}

void finish(const Finish& f, const int32_t* counts, const float* residual, float* y, int64_t n) {
  const float twice = 2.0f * f.scale;
  if (!(twice - twice == 0)) return finish_plainly(f, counts, residual, y, n);
  return residual ? finish_with<true>(f, counts, residual, y, n) : finish_with<false>(f, counts, residual, y, n);
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
#pragma GCC unroll 24
  for (int i = 0; i < kSums; ++i) sum[i] = _mm512_set1_epi32(static_cast<int>(*sink) + i);
  __m512i word = _mm512_set1_epi32(static_cast<int>(*sink));
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 24
    for (int i = 0; i < kSums; ++i) {
      sum[i] = _mm512_add_epi32(sum[i], _mm512_popcnt_epi32(_mm512_xor_si512(sum[i], word)));
    }
  }
#pragma GCC unroll 24
  for (int i = 0; i < kSums; ++i) *sink += static_cast<uint32_t>(_mm512_reduce_add_epi32(sum[i]));
  return rounds * kSums * kLanes * 32;
}

}  // namespace

extern const Isa kAvx512;
const Isa kAvx512 = {"avx512", 4,     1,     kBlock, 10 * kTile * kLanes, true, kBase, pack,
                     place, weight_cell, count, finish, threshold, bound};

}  // namespace bnas
