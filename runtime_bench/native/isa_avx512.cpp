// AVX-512 with VPOPCNTDQ: 16 pixels of 32 channels in a register, xor with a broadcast weight word, popcount, add.
#include <immintrin.h>

#include "isa.h"

namespace bnas {
namespace {

constexpr int kBlock = 8;
constexpr int kLanes = 16;
constexpr int kTile = 3, kOutputs = 4;  // registers of pixels, outputs: 3 x 4 pairs of sums fit into 32 registers
constexpr int64_t kStrip = 10 * kTile * kLanes;

template <int N>
struct Constant {
  static constexpr int value = N;
};

// Words of R registers of pixels; `rest` masks the last one.
template <int R>
inline __attribute__((always_inline)) void pack_pixels(const float* x, int64_t plane, const float* shift,
                                                       int64_t shift_step, int64_t channels, __mmask16 rest,
                                                       uint32_t* words) {
  __m512i word[R];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) word[r] = _mm512_setzero_si512();
  __m512i bit = _mm512_set1_epi32(1);
  for (int64_t c = 0; c < channels; ++c, x += plane, shift += shift_step) {
    const __m512 threshold = _mm512_set1_ps(*shift);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const __m512 value = _mm512_maskz_loadu_ps(r < R - 1 ? __mmask16{0xffff} : rest, x + r * kLanes);
      word[r] = _mm512_mask_or_epi32(word[r], _mm512_cmp_ps_mask(value, threshold, _CMP_LT_OQ), word[r], bit);
    }
    bit = _mm512_slli_epi32(bit, 1);
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    _mm512_mask_storeu_epi32(words + r * kLanes, r < R - 1 ? __mmask16{0xffff} : rest, word[r]);
  }
}

void pack(const float* x, int64_t plane, const float* shift, int64_t shift_step, int64_t channels, int64_t pixels,
          uint32_t* words) {
  constexpr int kRun = 4;
  int64_t p = 0;
  for (; p + kRun * kLanes <= pixels; p += kRun * kLanes) {
    pack_pixels<kRun>(x + p, plane, shift, shift_step, channels, 0xffff, words + p);
  }
  if (p == pixels) return;
  const int64_t left = pixels - p, last = (left - 1) % kLanes + 1;
  const __mmask16 rest = static_cast<__mmask16>((1u << last) - 1);
  const auto tail = left <= kLanes       ? pack_pixels<1>
                    : left <= 2 * kLanes ? pack_pixels<2>
                    : left <= 3 * kLanes ? pack_pixels<3>
                                         : pack_pixels<4>;
  tail(x + p, plane, shift, shift_step, channels, rest, words + p);
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
  int64_t i = 0;
  if (step == 2) {  // reads the word behind the last one it wants, so there must be one more
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    for (; i + kLanes < n; i += kLanes) {
      const uint32_t* from = words + 2 * i;
      const __m512i low = _mm512_loadu_si512(from), high = _mm512_loadu_si512(from + kLanes);
      _mm512_storeu_si512(target + i, _mm512_permutex2var_epi32(low, even, high));
    }
  }
  for (; i < n; ++i) target[i] = words[i * step];
}

uint32_t weight_cell(uint32_t word, int) { return word; }

// Two words a step. A plain sum takes xor, popcount, add for each word; adding both words into a register of
// ones first, and counting only what it carries, takes 5 instructions for two:
//   half = ones ^ a ^ u      next = half ^ b ^ v      carry = majority(ones, a ^ u, b ^ v) = f(ones, half, next)
// The first word is what the ones begin with.
constexpr int kXor3 = 0x96;   // x ^ y ^ z
constexpr int kCarry = 0x5c;  // of half, ones, next

// Carries and ones are added up by one product of 16-bit pairs: (carries, kStart) * (2, start) + popcount(ones).
constexpr int32_t kStart = 1 << 16;
bool worth_carrying(int64_t steps) { return steps > 2 && steps < (1 << 16) / 32; }

// What `add_up` wants to know of `start`, the number that sums begin with.
__m512i factors(int32_t start) { return _mm512_set1_epi32(static_cast<int>(static_cast<uint32_t>(start) << 16 | 2)); }

inline __attribute__((always_inline)) __m512i add_up(__m512i twos, __m512i ones, __m512i factors) {
  return _mm512_dpwssd_epi32(_mm512_popcnt_epi32(ones), twos, factors);
}

inline __attribute__((always_inline)) __m512i broadcast(const uint32_t* weight) {
  __m512i value;
  __asm__("vpbroadcastd %1, %0" : "=v"(value) : "m"(*weight));
  return value;
}

// sum += the counts of one step for O outputs at P registers of positions.
template <int P, int O>
inline __attribute__((always_inline)) void add_step(const uint32_t* cells, const uint32_t* weights,
                                                    __m512i (&sum)[O][P]) {
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) {
    const __m512i a = _mm512_loadu_si512(cells + p * kLanes);
#pragma GCC unroll 8
    for (int o = 0; o < O; ++o) {
      const __m512i differ = _mm512_xor_si512(a, _mm512_set1_epi32(static_cast<int>(weights[o])));
      sum[o][p] = _mm512_add_epi32(sum[o][p], _mm512_popcnt_epi32(differ));
    }
  }
}

// sum = start + the counts of O outputs at P registers of positions.
template <bool kCarries, int P, int O>
inline __attribute__((always_inline)) void count_tile(const Counting& job, const uint32_t* weights, int64_t position,
                                                      int32_t start, __m512i (&sum)[O][P]) {
  const uint32_t* cells = static_cast<const uint32_t*>(job.cells) + position;
  if (!kCarries) {
#pragma GCC unroll 8
    for (int o = 0; o < O; ++o) {
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) sum[o][p] = _mm512_set1_epi32(start);
    }
    for (int64_t s = 0; s < job.steps; ++s) add_step<P, O>(cells + job.offsets[s], weights + s * kBlock, sum);
    return;
  }
  __m512i twos[O][P], ones[O][P];
  const int32_t* offset = job.offsets;
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) {
    const __m512i a = _mm512_loadu_si512(cells + *offset + p * kLanes);
#pragma GCC unroll 8
    for (int o = 0; o < O; ++o) {
      ones[o][p] = _mm512_xor_si512(a, _mm512_set1_epi32(static_cast<int>(weights[o])));
      twos[o][p] = _mm512_set1_epi32(kStart);
    }
  }
  weights += kBlock;
  const int32_t* end = ++offset + ((job.steps - 1) & ~int64_t{1});
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
  const __m512i ends = factors(start);
#pragma GCC unroll 8
  for (int o = 0; o < O; ++o) {
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) sum[o][p] = add_up(twos[o][p], ones[o][p], ends);
  }
  if (job.steps % 2 == 0) add_step<P, O>(cells + *end, weights, sum);
}

// Covers registers of positions with tiles: tile(P, i) for P registers from the i-th on.
template <typename Tile>
inline __attribute__((always_inline)) void for_tiles(int64_t registers, const Tile& tile) {
  int64_t i = 0;
  while (registers - i > 4 || registers - i == 3) {  // 4 are better made as 2 and 2
    tile(Constant<kTile>{}, i);
    i += kTile;
  }
  for (; registers - i >= 2; i += 2) tile(Constant<2>{}, i);
  if (registers > i) tile(Constant<1>{}, i);
}

// `count_tile` for few positions, where carrying is worth it: lane 2 o + k has output o of kBlock at position k of a
// pair, for T pairs. sums: [kBlock, 2 T].
template <int T>
void count_pairs(const Counting& job, int64_t position, int32_t start, int32_t* sums) {
  const uint32_t* cells = static_cast<const uint32_t*>(job.cells) + position;
  const uint32_t* weights = job.weights;
  const __m512i twice = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
  const auto weight = [&](const uint32_t* at) {
    const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
    return _mm512_permutexvar_epi32(twice, _mm512_castsi256_si512(words));
  };
  const auto pair = [](const uint32_t* at) {
    int64_t both;
    __builtin_memcpy(&both, at, sizeof both);
    return _mm512_set1_epi64(both);
  };
  __m512i twos[T], ones[T];
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t) {
    twos[t] = _mm512_set1_epi32(kStart);
    ones[t] = _mm512_setzero_si512();
  }
  for (int64_t s = 0; s < job.steps; s += 2, weights += 2 * kBlock) {
    const bool both = s + 1 < job.steps;
    const __m512i u = weight(weights), v = both ? weight(weights + kBlock) : _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) {
      const __m512i b = both ? pair(cells + job.offsets[s + 1] + 2 * t) : _mm512_setzero_si512();
      const __m512i half = _mm512_ternarylogic_epi32(u, ones[t], pair(cells + job.offsets[s] + 2 * t), kXor3);
      const __m512i next = _mm512_ternarylogic_epi32(v, half, b, kXor3);
      twos[t] = _mm512_add_epi32(twos[t], _mm512_popcnt_epi32(_mm512_ternarylogic_epi32(half, ones[t], next, kCarry)));
      ones[t] = next;
    }
  }
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t) {
    int64_t pairs[kBlock];
    _mm512_storeu_si512(pairs, add_up(twos[t], ones[t], factors(start)));
    for (int o = 0; o < kBlock; ++o) __builtin_memcpy(sums + (o * T + t) * 2, pairs + o, sizeof pairs[o]);
  }
}

template <bool kCarries, int P, int O>
inline __attribute__((always_inline)) void store_counts(const Counting& job, int o, int64_t position, int32_t* counts,
                                                        int64_t stride) {
  __m512i sum[O][P];
  count_tile<kCarries, P, O>(job, job.weights + o, position, 0, sum);
#pragma GCC unroll 8
  for (int q = 0; q < O; ++q) {
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) _mm512_storeu_si512(counts + q * stride + p * kLanes, sum[q][p]);
  }
}

template <bool kCarries>
void count_tiles(const Counting& job, int64_t first, int64_t positions, int channels, int32_t* counts, int64_t stride) {
  for_tiles((positions + kLanes - 1) / kLanes, [&](auto constant, int64_t i) {
    constexpr int P = decltype(constant)::value;
    for (int o = 0; o < channels; o += kOutputs) {  // beyond `channels` the weights are there, and the counts too
      store_counts<kCarries, P, kOutputs>(job, o, first + i * kLanes, counts + o * stride + i * kLanes, stride);
    }
  });
}

void count(const Counting& job, int64_t first, int64_t positions, int channels, int32_t* counts, int64_t stride) {
  const auto tiles = worth_carrying(job.steps) ? count_tiles<true> : count_tiles<false>;
  tiles(job, first, positions, channels, counts, stride);
}

// No activation is one with slope 1.
template <bool kShift>
struct Affines {  // the same in every lane
  __m512 step, start, shift_in, slope, shift_out;

  explicit Affines(const Finish& f)
      : step(_mm512_set1_ps(f.step)),
        start(_mm512_set1_ps(f.start)),
        shift_in(_mm512_set1_ps(f.shift_in)),
        slope(_mm512_set1_ps(f.slope)),
        shift_out(_mm512_set1_ps(f.shift_out)) {}

  // Of count - middle.
  template <bool kResidual>
  __m512 finish(__m512i sum, __m512 residual) const {
    __m512 v = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), step, start);
    if (kResidual) v = _mm512_add_ps(v, residual);
    if (kShift) v = _mm512_sub_ps(v, shift_in);
    v = _mm512_mask_mul_ps(v, _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_LT_OQ), v, slope);
    return kShift ? _mm512_add_ps(v, shift_out) : v;
  }
};

void finish(const Finish& f, const int32_t* counts, const float* residual, float* y, int64_t n) {
  if (!f.finite) return finish_plainly(f, counts, residual, y, n);
  const Affines<true> affine(f);
  const __m512i middle = _mm512_set1_epi32(f.middle);
  for (int64_t i = 0; i < n; i += kLanes) {
    const __mmask16 rest = n - i >= kLanes ? 0xffff : static_cast<__mmask16>((1u << (n - i)) - 1);
    const __m512 added = residual ? _mm512_maskz_loadu_ps(rest, residual + i) : _mm512_setzero_ps();
    const __m512i sum = _mm512_sub_epi32(_mm512_maskz_loadu_epi32(rest, counts + i), middle);
    _mm512_mask_storeu_ps(y + i, rest, affine.finish<true>(sum, added));
  }
}

// `last`: the lanes of the last register that there are.
template <bool kCarries, int P, int O, bool kShift, bool kResidual, bool kWhole>
inline __attribute__((always_inline)) void unit_tile(const Counting& job, const Finish* ends, int o, int64_t position,
                                                     __mmask16 last, const float* residual, float* y, int64_t plane) {
  __m512i sum[O][P];
  count_tile<kCarries, P, O>(job, job.weights + o, position, -ends->middle, sum);
#pragma GCC unroll 8
  for (int q = 0; q < O; ++q) {
    const Affines<kShift> finished(ends[o + q]);
    const int64_t at = (o + q) * plane + position;
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
      const __mmask16 kept = kWhole || p < P - 1 ? __mmask16{0xffff} : last;
      const __m512 extra = kResidual ? _mm512_maskz_loadu_ps(kept, residual + at + p * kLanes) : _mm512_setzero_ps();
      _mm512_mask_storeu_ps(y + at + p * kLanes, kept, finished.template finish<kResidual>(sum[q][p], extra));
    }
  }
}

// The `left` <= 2 T positions from `position` on.
template <int T, bool kShift>
void unit_pairs(const Counting& job, const Finish* ends, int n, int64_t position, int64_t left, const float* residual,
                float* y, int64_t plane) {
  int32_t sums[kBlock * 2 * T];
  count_pairs<T>(job, position, -ends->middle, sums);
  const __mmask16 kept = static_cast<__mmask16>((1u << left) - 1);
  for (int o = 0; o < n; ++o) {
    float* target = y + o * plane + position;
    const __m512 extra = residual ? _mm512_maskz_loadu_ps(kept, residual + o * plane + position) : _mm512_setzero_ps();
    const __m512i sum = _mm512_maskz_loadu_epi32(kept, sums + o * 2 * T);
    _mm512_mask_storeu_ps(target, kept, Affines<kShift>(ends[o]).template finish<true>(sum, extra));
  }
}

template <bool kCarries, bool kShift, bool kResidual>
void unit_tiles(const Counting& job, const Finish* ends, int n, int64_t positions, const float* residual, float* y,
                int64_t plane) {
  int64_t registers = (positions + kLanes - 1) / kLanes;
  const int64_t left = (positions - 1) % kLanes + 1;  // in the last register
  const bool pairs = kCarries && n > kOutputs && left <= kLanes / 2;
  const __mmask16 rest = static_cast<__mmask16>((1u << left) - 1);
  if (pairs) --registers;
  for_tiles(registers, [&](auto constant, int64_t i) {
    constexpr int P = decltype(constant)::value;
    const bool whole = pairs || left == kLanes || i + P < registers;
    int o = 0;
    for (; o + kOutputs <= n; o += kOutputs) {
      if (whole) {
        unit_tile<kCarries, P, kOutputs, kShift, kResidual, true>(job, ends, o, i * kLanes, rest, residual, y, plane);
      } else {
        unit_tile<kCarries, P, kOutputs, kShift, kResidual, false>(job, ends, o, i * kLanes, rest, residual, y, plane);
      }
    }
    const __mmask16 last = whole ? __mmask16{0xffff} : rest;
    for (; o < n; ++o) {
      unit_tile<kCarries, P, 1, kShift, kResidual, false>(job, ends, o, i * kLanes, last, residual, y, plane);
    }
  });
  if (!pairs) return;
  const auto tail = left <= 2 ? unit_pairs<1, kShift> : left <= 4 ? unit_pairs<2, kShift> : unit_pairs<4, kShift>;
  tail(job, ends, n, registers * kLanes, left, residual, y, plane);
}

void unit(const Counting& job, const Finish* channels, int n, int64_t positions, const float* residual, float* y,
          int64_t plane) {
  bool plain = false, shift = false;
  for (int o = 0; o < n; ++o) {
    plain = plain || !channels[o].finite;
    shift = shift || channels[o].shift_in != 0 || channels[o].shift_out != 0;
  }
  if (plain) return unit_plainly<kBlock, kStrip>(job, channels, n, positions, residual, y, plane, count, finish);
  constexpr decltype(&unit_tiles<true, true, true>) kTiles[] = {
      unit_tiles<false, false, false>, unit_tiles<false, false, true>, unit_tiles<false, true, false>,
      unit_tiles<false, true, true>,   unit_tiles<true, false, false>, unit_tiles<true, false, true>,
      unit_tiles<true, true, false>,   unit_tiles<true, true, true>};
  const int carries = worth_carrying(job.steps);
  kTiles[carries * 4 + shift * 2 + (residual != nullptr)](job, channels, n, positions, residual, y, plane);
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
      __m512i differ;  // in this order: what a compiler's scheduler makes of it may be 7 % slower
      __asm__ volatile(
          "vpxord %[word], %[sum], %[differ]\n\t"
          "vpopcntd %[differ], %[differ]\n\t"
          "vpaddd %[differ], %[sum], %[sum]"
          : [differ] "=&v"(differ), [sum] "+v"(sum[i])
          : [word] "v"(word));
    }
  }
#pragma GCC unroll 24
  for (int i = 0; i < kSums; ++i) {
    alignas(64) uint32_t words[kLanes];  // added up as unsigned numbers, which may overflow
    _mm512_store_si512(words, sum[i]);
    for (uint32_t one : words) *sink += one;
  }
  return rounds * kSums * kLanes * 32;
}

}  // namespace

extern const Isa kAvx512;
const Isa kAvx512 = {"avx512",   4,           1,     kBlock, kStrip, pack,      place,
                     join_cells, weight_cell, count, finish, unit,   threshold, bound};

}  // namespace bnas
