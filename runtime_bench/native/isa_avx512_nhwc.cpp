// AVX-512 with VPOPCNTDQ, 16 output channels in a register; see isa_avx512.cpp for how two words are counted at once.
#include <immintrin.h>

#include "isa_nhwc.h"

namespace bnas {
namespace {

constexpr int kLanes = 16;
constexpr int kPixels = 6, kRegisters = 2;  // 6 x 2 pairs of sums, 2 x 2 weights and 2 words fit into 32 registers
constexpr int kXor3 = 0x96;                 // x ^ y ^ z
constexpr int kCarry = 0x5c;                // of half, ones, next

inline __attribute__((always_inline)) __m512i broadcast(const uint32_t* word) {
  __m512i value;
  __asm__("vpbroadcastd %1, %0" : "=v"(value) : "m"(*word));
  return value;
}

__mmask16 first_lanes(int64_t n) { return n >= kLanes ? 0xffff : static_cast<__mmask16>((1u << n) - 1); }

// sum[q][v] = the counts of lanes [lane + 16 v, + 16) at pixel q.
template <int P, int V>
inline __attribute__((always_inline)) void count_tile(const NhwcCounting& job, int64_t lane, int64_t position,
                                                      __m512i (&sum)[P][V]) {
  const uint32_t* pixel[P];
  __m512i twos[P][V], ones[P][V];
#pragma GCC unroll 6
  for (int q = 0; q < P; ++q) {
    pixel[q] = job.image + job.begins[position + q];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) twos[q][v] = ones[q][v] = _mm512_setzero_si512();
  }
  const uint32_t* weights = job.weights + lane;
  const int64_t lanes = job.lanes;
  const int32_t* offset = job.offsets;
  const int32_t* end = offset + (job.steps & ~int64_t{1});
  for (; offset != end; offset += 2, weights += 2 * lanes) {
    const int64_t first = offset[0], second = offset[1];
    __m512i a[V], b[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      a[v] = _mm512_loadu_si512(weights + v * kLanes);
      b[v] = _mm512_loadu_si512(weights + lanes + v * kLanes);
    }
#pragma GCC unroll 6
    for (int q = 0; q < P; ++q) {
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
        // Loading the word anew for each register of channels leaves it free to be overwritten: no moves.
        __m512i half = broadcast(pixel[q] + first), next = broadcast(pixel[q] + second);
        half = _mm512_ternarylogic_epi32(half, ones[q][v], a[v], kXor3);
        next = _mm512_ternarylogic_epi32(next, half, b[v], kXor3);
        half = _mm512_ternarylogic_epi32(half, ones[q][v], next, kCarry);
        ones[q][v] = next;
        twos[q][v] = _mm512_add_epi32(twos[q][v], _mm512_popcnt_epi32(half));
        __asm__ volatile("" : "+v"(twos[q][v]), "+v"(ones[q][v]));  // else gcc interleaves the pixels and spills
      }
    }
  }
#pragma GCC unroll 6
  for (int q = 0; q < P; ++q) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      sum[q][v] = _mm512_add_epi32(_mm512_slli_epi32(twos[q][v], 1), _mm512_popcnt_epi32(ones[q][v]));
      if (job.steps & 1) {
        const __m512i differ = _mm512_xor_si512(_mm512_set1_epi32(static_cast<int>(pixel[q][*end])),
                                                _mm512_loadu_si512(weights + v * kLanes));
        sum[q][v] = _mm512_add_epi32(sum[q][v], _mm512_popcnt_epi32(differ));
      }
    }
  }
}

template <int N>
struct Constant {
  static constexpr int value = N;
};

// tile(P, V, lane, position) for P pixels and V registers of channels, until all are covered.
template <typename Tile>
inline __attribute__((always_inline)) void for_tiles(int64_t outputs, int64_t begin, int64_t end, const Tile& tile) {
  for (int64_t lane = 0; lane < outputs; lane += kRegisters * kLanes) {
    const auto column = [&](auto registers) {
      int64_t p = begin;
      for (; p + kPixels <= end; p += kPixels) tile(Constant<kPixels>{}, registers, lane, p);
      if (p + 4 <= end) tile(Constant<4>{}, registers, lane, p), p += 4;
      if (p + 2 <= end) tile(Constant<2>{}, registers, lane, p), p += 2;
      if (p < end) tile(Constant<1>{}, registers, lane, p);
    };
    if (outputs - lane > kLanes) {
      column(Constant<2>{});
    } else {
      column(Constant<1>{});
    }
  }
}

// What pads of 0 take from the dot products of 16 lanes.
inline __attribute__((always_inline)) __m512i pads_of(const NhwcCounting& job, int64_t position, int64_t lane,
                                                      __mmask16 kept) {
  if (!job.classes) return _mm512_setzero_si512();
  return _mm512_maskz_loadu_epi32(kept, job.pad_sums + job.classes[position] * job.pad_step + lane);
}

uint32_t word_of(const float* values, const float* shift, int64_t n) {
  const __mmask16 low = first_lanes(n), high = n > kLanes ? first_lanes(n - kLanes) : __mmask16{0};
  const __m512 zero = _mm512_setzero_ps();
  const __m512 a = shift ? _mm512_maskz_loadu_ps(low, shift) : zero;
  const uint32_t word = _mm512_mask_cmp_ps_mask(low, _mm512_maskz_loadu_ps(low, values), a, _CMP_LT_OQ);
  if (!high) return word;
  const __m512 b = shift ? _mm512_maskz_loadu_ps(high, shift + kLanes) : zero;
  const __m512 rest = _mm512_maskz_loadu_ps(high, values + kLanes);
  return word | static_cast<uint32_t>(_mm512_mask_cmp_ps_mask(high, rest, b, _CMP_LT_OQ)) << kLanes;
}

void pack(const float* values, const float* shift, int64_t channels, int64_t pixels, uint32_t* words) {
  if (channels % 32 == 0 && !shift) {  // one stream
    const __m512 zero = _mm512_setzero_ps();
    for (int64_t i = 0; i < pixels * channels / 32; ++i, values += 32) {
      const uint32_t low = _mm512_cmp_ps_mask(_mm512_loadu_ps(values), zero, _CMP_LT_OQ);
      const uint32_t high = _mm512_cmp_ps_mask(_mm512_loadu_ps(values + kLanes), zero, _CMP_LT_OQ);
      words[i] = low | high << kLanes;
    }
    return;
  }
  for (int64_t p = 0; p < pixels; ++p, values += channels) {
    for (int64_t c = 0; c < channels; c += 32) {
      *words++ = word_of(values + c, shift ? shift + c : nullptr, channels - c < 32 ? channels - c : 32);
    }
  }
}

void to_float(const NhwcCounting& job, const NhwcAffine& affine, int64_t begin, int64_t end, float* y, int64_t row) {
  const __m512 two = _mm512_set1_ps(2), fan_in = _mm512_set1_ps(job.fan_in), zero = _mm512_setzero_ps();
  const __m512 low = _mm512_set1_ps(affine.low), high = _mm512_set1_ps(affine.high);
  for_tiles(job.outputs, begin, end, [&](auto pixels, auto registers, int64_t lane, int64_t position) {
    constexpr int P = decltype(pixels)::value, V = decltype(registers)::value;
    __m512i sum[P][V];
    count_tile<P, V>(job, lane, position, sum);
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      const int64_t c = lane + v * kLanes;
      const __mmask16 kept = first_lanes(job.outputs - c);
      const auto channels = [&](const float* values) {
        return values ? _mm512_maskz_loadu_ps(kept, values + c) : zero;
      };
      const __m512 scale = channels(affine.scale), bias = channels(affine.bias), slope = channels(affine.slope);
      const __m512 shift_in = channels(affine.shift_in), shift_out = channels(affine.shift_out);
#pragma GCC unroll 6
      for (int q = 0; q < P; ++q) {
        const int64_t at = (position + q) * row + c;
        __m512 value = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(sum[q][v]), two, fan_in);
        if (job.classes) value = _mm512_sub_ps(value, _mm512_cvtepi32_ps(pads_of(job, position + q, c, kept)));
        value = _mm512_min_ps(_mm512_max_ps(value, low), high);
        value = _mm512_fmadd_ps(value, scale, bias);
        if (affine.residual) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(kept, affine.residual + at));
        if (affine.shift_in) value = _mm512_sub_ps(value, shift_in);
        if (affine.slope) {
          value = _mm512_mask_mul_ps(value, _mm512_cmp_ps_mask(value, zero, _CMP_LT_OQ), value, slope);
        }
        if (affine.shift_out) value = _mm512_add_ps(value, shift_out);
        _mm512_mask_storeu_ps(y + at, kept, value);
      }
    }
  });
}

void to_int8(const NhwcCounting& job, const NhwcInt8& quantized, int64_t begin, int64_t end, int8_t* y, int64_t row) {
  const __m512i fan_in = _mm512_set1_epi32(static_cast<int>(job.fan_in));
  const __m512i low = _mm512_set1_epi32(quantized.low), high = _mm512_set1_epi32(quantized.high);
  for_tiles(job.outputs, begin, end, [&](auto pixels, auto registers, int64_t lane, int64_t position) {
    constexpr int P = decltype(pixels)::value, V = decltype(registers)::value;
    __m512i sum[P][V];
    count_tile<P, V>(job, lane, position, sum);
    for (int v = 0; v < V; ++v) {
      const int64_t c = lane + v * kLanes;
      const __mmask16 kept = first_lanes(job.outputs - c);
      const __m512 scale = _mm512_maskz_loadu_ps(kept, quantized.scale + c);
      const __m512 bias = _mm512_maskz_loadu_ps(kept, quantized.bias + c);
      for (int q = 0; q < P; ++q) {
        const __m512i twice = _mm512_add_epi32(_mm512_slli_epi32(sum[q][v], 1), pads_of(job, position + q, c, kept));
        __m512i dot = _mm512_sub_epi32(fan_in, twice);
        dot = _mm512_min_epi32(_mm512_max_epi32(dot, low), high);
        __m512 value = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(fan_in, dot)), scale);
        value = _mm512_add_ps(value, bias);
        value = _mm512_min_ps(_mm512_max_ps(value, _mm512_set1_ps(-256)), _mm512_set1_ps(256));
        // Half away from zero: what is cut off is exact.
        const __m512 whole = _mm512_roundscale_ps(value, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
        const __m512 cut = _mm512_sub_ps(value, whole);
        __m512i steps = _mm512_cvttps_epi32(whole);
        const __m512i one = _mm512_set1_epi32(1);
        steps = _mm512_mask_add_epi32(steps, _mm512_cmp_ps_mask(cut, _mm512_set1_ps(0.5f), _CMP_GE_OQ), steps, one);
        steps = _mm512_mask_sub_epi32(steps, _mm512_cmp_ps_mask(cut, _mm512_set1_ps(-0.5f), _CMP_LE_OQ), steps, one);
        _mm512_mask_cvtsepi32_storeu_epi8(y + (position + q) * row + c, kept, steps);
      }
    }
  });
}

void to_bits(const NhwcCounting& job, const int32_t* limits, int64_t begin, int64_t end, uint32_t* y, int64_t row) {
  for_tiles(job.outputs, begin, end, [&](auto pixels, auto registers, int64_t lane, int64_t position) {
    constexpr int P = decltype(pixels)::value, V = decltype(registers)::value;
    __m512i sum[P][V];
    count_tile<P, V>(job, lane, position, sum);
    for (int q = 0; q < P; ++q) {
      uint32_t word = 0;
      for (int v = 0; v < V; ++v) {
        const int64_t c = lane + v * kLanes;
        const __mmask16 kept = first_lanes(job.outputs - c);
        const __m512i limit = _mm512_slli_epi32(_mm512_maskz_loadu_epi32(kept, limits + c), 1);
        const __m512i twice = _mm512_add_epi32(_mm512_slli_epi32(sum[q][v], 1), pads_of(job, position + q, c, kept));
        word |= static_cast<uint32_t>(_mm512_mask_cmpgt_epi32_mask(kept, twice, limit)) << v * kLanes;
      }
      y[(position + q) * row + lane / 32] = word;
    }
  });
}

}  // namespace

extern const NhwcIsa kAvx512Nhwc;
const NhwcIsa kAvx512Nhwc = {pack, to_float, to_int8, to_bits};

}  // namespace bnas
