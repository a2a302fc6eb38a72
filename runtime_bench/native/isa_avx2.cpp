// AVX2, without a popcount of its own: tables chosen by the weights take over xor and popcount.
//
// A cell is a byte with the signs of 4 channels, a = 0..15. For the weights w and v of two output channels there is a
// table of 16 bytes: popcount(a xor w) + 16 * popcount(a xor v). One shuffle looks it up for 32 pixels, which is 256
// binary MACs. Three such bytes can be added before a half of them overflows (3 * 4 < 16). Their sum s is accumulated
// twice, as bytes modulo 256: s, and s shifted right by 4 in lanes of 16 bits. With the bytes of a lane being
// s0 = low0 + 16 high0 and s1 = low1 + 16 high1, that makes the four sums
//   a1 = low1 + 16 high1,  a0 = low0 + 16 high0,  b1 = high1,  b0 = high0 + 16 low1   (modulo 256)
// from which high1, low1, high0 and low0 follow in this order, as long as none exceeds 255: for 63 steps. So 8
// instructions (3 shuffles, 1 shift, 4 additions) do 768 binary MACs.
#include <immintrin.h>

#include "isa.h"

namespace bnas {
namespace {

constexpr int kBlock = 8;
constexpr int64_t kLanes = 32;
constexpr int64_t kTile = 2;          // registers of pixels; 2 x 2 pairs of outputs make 8 sums, beside 4 partial ones
constexpr int64_t kStrip = 8 * kTile * kLanes;
constexpr int64_t kByteSteps = 63;    // of at most 4 each that a byte can hold
constexpr int64_t kWordChunks = 128;  // of kByteSteps that 16 bits can hold, a remainder of 255 included

constexpr int ones(int value) {
  int n = 0;
  for (; value; value &= value - 1) ++n;
  return n;
}

struct Tables {
  uint8_t byte[256][16] = {};  // [16 * v + w][a]
  constexpr Tables() {
    for (int pair = 0; pair < 256; ++pair) {
      for (int a = 0; a < 16; ++a) {
        byte[pair][a] = static_cast<uint8_t>(ones(a ^ (pair & 15)) + 16 * ones(a ^ (pair >> 4)));
      }
    }
  }
};
alignas(64) constexpr Tables kTables;

__m256i load(const void* at) { return _mm256_loadu_si256(static_cast<const __m256i*>(at)); }
void store(void* at, __m256i value) { _mm256_storeu_si256(static_cast<__m256i*>(at), value); }

// All ones in the first n of 8 lanes.
__m256i first_lanes(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// Words of 8 R pixels. The masks of channels j, j + 8, j + 16 and j + 24 are narrowed to bytes, one register for 8
// pixels, and shifted into bit j of the four bytes of a word.
template <int R, bool kAll>
inline __attribute__((always_inline)) void pack_pixels(const float* x, int64_t plane, const float* shift,
                                                       int64_t shift_step, int64_t channels, __m256i lanes,
                                                       __m256i* words) {
  __m256i word[R];
  for (int r = 0; r < R; ++r) word[r] = _mm256_setzero_si256();
  for (int64_t j = 7; j >= 0; --j) {
    __m256 threshold[4];
    for (int64_t k = 0; k < 4; ++k) {
      const int64_t c = j + 8 * k;
      threshold[k] = kAll || c < channels ? _mm256_set1_ps(shift[c * shift_step]) : _mm256_setzero_ps();
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      __m256i below[4];
#pragma GCC unroll 4
      for (int64_t k = 0; k < 4; ++k) {
        const int64_t c = j + 8 * k;
        below[k] = _mm256_setzero_si256();
        if (kAll || c < channels) {
          const float* source = x + c * plane + 8 * r;
          const __m256 value = R > 1 ? _mm256_loadu_ps(source) : _mm256_maskload_ps(source, lanes);
          below[k] = _mm256_castps_si256(_mm256_cmp_ps(threshold[k], value, _CMP_GT_OQ));
        }
      }
      const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(below[0], below[1]),
                                               _mm256_packs_epi32(below[2], below[3]));
      word[r] = _mm256_sub_epi8(_mm256_add_epi8(word[r], word[r]), bytes);
    }
  }
  const __m256i order = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  for (int r = 0; r < R; ++r) words[r] = _mm256_shuffle_epi8(word[r], order);
}

template <bool kAll>
void pack_channels(const float* x, int64_t plane, const float* shift, int64_t shift_step, int64_t channels,
                   int64_t pixels, uint32_t* words) {
  constexpr int kWide = 8;
  int64_t p = 0;
  for (; p + 8 * kWide <= pixels; p += 8 * kWide) {
    __m256i word[kWide];
    pack_pixels<kWide, kAll>(x + p, plane, shift, shift_step, channels, _mm256_setzero_si256(), word);
    for (int r = 0; r < kWide; ++r) store(words + p + 8 * r, word[r]);
  }
  for (; p < pixels; p += 8) {
    const __m256i lanes = first_lanes(pixels - p < 8 ? pixels - p : 8);
    __m256i word;
    pack_pixels<1, kAll>(x + p, plane, shift, shift_step, channels, lanes, &word);
    _mm256_maskstore_epi32(reinterpret_cast<int*>(words + p), lanes, word);
  }
}

void pack(const float* x, int64_t plane, const float* shift, int64_t shift_step, int64_t channels, int64_t pixels,
          uint32_t* words) {
  if (channels == 32) return pack_channels<true>(x, plane, shift, shift_step, channels, pixels, words);
  pack_channels<false>(x, plane, shift, shift_step, channels, pixels, words);
}

// 8 words as 4 x 8 bytes: byte k of all of them in the k-th 64 bits.
__m256i byte_planes(__m256i words) {
  const __m256i order = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  return _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(words, order), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

__m256i low_halves(__m256i bytes) { return _mm256_and_si256(bytes, _mm256_set1_epi8(15)); }
__m256i high_halves(__m256i bytes) { return low_halves(_mm256_srli_epi16(bytes, 4)); }

void place_32(const uint32_t* words, uint8_t* cells, int64_t plane) {
  __m256i part[4];
  for (int i = 0; i < 4; ++i) part[i] = byte_planes(load(words + 8 * i));
  const __m256i even01 = _mm256_unpacklo_epi64(part[0], part[1]), odd01 = _mm256_unpackhi_epi64(part[0], part[1]);
  const __m256i even23 = _mm256_unpacklo_epi64(part[2], part[3]), odd23 = _mm256_unpackhi_epi64(part[2], part[3]);
  const __m256i bytes[4] = {
      _mm256_permute2x128_si256(even01, even23, 0x20), _mm256_permute2x128_si256(odd01, odd23, 0x20),
      _mm256_permute2x128_si256(even01, even23, 0x31), _mm256_permute2x128_si256(odd01, odd23, 0x31)};
  for (int k = 0; k < 4; ++k) {
    store(cells + 2 * k * plane, low_halves(bytes[k]));
    store(cells + (2 * k + 1) * plane, high_halves(bytes[k]));
  }
}

void place_8(const uint32_t* words, uint8_t* cells, int64_t plane) {
  const __m256i bytes = byte_planes(load(words));
  const __m256i half[2] = {low_halves(bytes), high_halves(bytes)};
  for (int h = 0; h < 2; ++h) {
    const int64_t eights[4] = {_mm256_extract_epi64(half[h], 0), _mm256_extract_epi64(half[h], 1),
                               _mm256_extract_epi64(half[h], 2), _mm256_extract_epi64(half[h], 3)};
    for (int k = 0; k < 4; ++k) __builtin_memcpy(cells + (2 * k + h) * plane, &eights[k], 8);
  }
}

void place_4(const uint32_t* words, uint8_t* cells, int64_t plane) {
  const __m128i order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m128i bytes = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(words)), order);
  const __m128i mask = _mm_set1_epi8(15);
  const __m128i half[2] = {_mm_and_si128(bytes, mask), _mm_and_si128(_mm_srli_epi16(bytes, 4), mask)};
  for (int h = 0; h < 2; ++h) {
    alignas(16) uint8_t quarter[16];
    _mm_store_si128(reinterpret_cast<__m128i*>(quarter), half[h]);
    for (int k = 0; k < 4; ++k) __builtin_memcpy(cells + (2 * k + h) * plane, quarter + 4 * k, 4);
  }
}

// Neighbouring words. Nothing but the n cells of each plane may be written: the last vector overlaps the one before.
void place_run(const uint32_t* words, int64_t n, uint8_t* cells, int64_t plane) {
  if (n >= 32) {
    for (int64_t i = 0; i + 32 < n; i += 32) place_32(words + i, cells + i, plane);
    return place_32(words + n - 32, cells + n - 32, plane);
  }
  if (n >= 8) {
    for (int64_t i = 0; i + 8 < n; i += 8) place_8(words + i, cells + i, plane);
    return place_8(words + n - 8, cells + n - 8, plane);
  }
  if (n >= 4) {
    place_4(words, cells, plane);
    return place_4(words + n - 4, cells + n - 4, plane);
  }
  for (int64_t i = 0; i < n; ++i) {
    for (int c = 0; c < 8; ++c) cells[c * plane + i] = words[i] >> 4 * c & 15;
  }
}

void place(const uint32_t* words, int64_t step, int64_t n, void* cells, int64_t plane) {
  uint8_t* target = static_cast<uint8_t*>(cells);
  if (step == 1) return place_run(words, n, target, plane);
  constexpr int64_t kRun = 64;
  uint32_t run[kRun];
  for (int64_t first = 0; first < n; first += kRun) {
    const int64_t length = n - first < kRun ? n - first : kRun;
    for (int64_t i = 0; i < length; ++i) run[i] = words[(first + i) * step];
    place_run(run, length, target + first, plane);
  }
}

// 4 bits in the lowest and in the highest place: 16 bits read across two neighbours, from byte 3 on, are w * 16 + v *
// 256 with w the first one's bits and v the second one's. That is where their table stands.
uint32_t weight_cell(uint32_t word, int cell) {
  const uint32_t bits = word >> 4 * cell & 15;
  return bits << 28 | bits;
}

__m256i table_of(const uint8_t* weights) {
  uint16_t offset;
  __builtin_memcpy(&offset, weights, sizeof offset);
  return _mm256_broadcastsi128_si256(
      _mm_load_si128(reinterpret_cast<const __m128i*>(&kTables.byte[0][0] + offset)));
}

// N <= 3 steps of P registers of pixels and Q pairs of outputs.
template <int N, int P, int Q>
inline __attribute__((always_inline)) void add_steps(const uint8_t* cells, const int32_t* offsets,
                                                     const uint8_t* weights, __m256i (&a)[Q][P], __m256i (&b)[Q][P]) {
  __m256i sum[Q][P];
#pragma GCC unroll 3
  for (int n = 0; n < N; ++n) {
    const uint8_t* source = cells + offsets[n];
    __m256i cell[P];
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) cell[p] = load(source + p * kLanes);
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) {
      const __m256i table = table_of(weights + n * kBlock * 4 + q * 8);
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) {
        const __m256i found = _mm256_shuffle_epi8(table, cell[p]);
        sum[q][p] = n == 0 ? found : _mm256_add_epi8(sum[q][p], found);
        __asm__("" : "+x"(sum[q][p]));  // keeps compilers from regrouping the steps, which takes too many registers
      }
    }
  }
#pragma GCC unroll 4
  for (int q = 0; q < Q; ++q) {
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
      a[q][p] = _mm256_add_epi8(a[q][p], sum[q][p]);
      b[q][p] = _mm256_add_epi8(b[q][p], _mm256_srli_epi16(sum[q][p], 4));
    }
  }
}

// Writes 32 counts; `even` and `odd` hold those of even and odd pixels, as 16 bits, `high` (or null) 256 times more.
void write(__m256i even, __m256i odd, const __m256i* high, int32_t* counts) {
  const __m256i zero = _mm256_setzero_si256();
  for (int i = 0; i < 2; ++i) {  // pixels 0 to 7 and 16 to 23, then the others
    const __m256i words = i == 0 ? _mm256_unpacklo_epi16(even, odd) : _mm256_unpackhi_epi16(even, odd);
    __m256i quads[2] = {_mm256_unpacklo_epi16(words, zero), _mm256_unpackhi_epi16(words, zero)};
    if (high) {
      const __m256i more = i == 0 ? _mm256_unpacklo_epi16(high[0], high[1]) : _mm256_unpackhi_epi16(high[0], high[1]);
      quads[0] = _mm256_add_epi32(quads[0], _mm256_slli_epi32(_mm256_unpacklo_epi16(more, zero), 8));
      quads[1] = _mm256_add_epi32(quads[1], _mm256_slli_epi32(_mm256_unpackhi_epi16(more, zero), 8));
    }
    store(counts + 8 * i, _mm256_permute2x128_si256(quads[0], quads[1], 0x20));
    store(counts + 8 * i + 16, _mm256_permute2x128_si256(quads[0], quads[1], 0x31));
  }
}

// At most 63 steps: the sums of every pair of outputs and register of pixels, as far as they fit into bytes.
template <int P, int Q>
__attribute__((noinline)) void add_chunk(const uint8_t* cells, const int32_t* offsets, const uint8_t* weights,
                                         int64_t steps, __m256i (&a_out)[Q][P], __m256i (&b_out)[Q][P]) {
  __m256i a[Q][P], b[Q][P];
  for (int q = 0; q < Q; ++q) {
    for (int p = 0; p < P; ++p) a[q][p] = b[q][p] = _mm256_setzero_si256();
  }
  for (int64_t n = steps / 3; n > 0; --n, offsets += 3, weights += 3 * kBlock * 4) {
    add_steps<3>(cells, offsets, weights, a, b);
  }
  for (int64_t n = steps % 3; n > 0; --n, ++offsets, weights += kBlock * 4) add_steps<1>(cells, offsets, weights, a, b);
  for (int q = 0; q < Q; ++q) {
    for (int p = 0; p < P; ++p) {
      a_out[q][p] = a[q][p];
      b_out[q][p] = b[q][p];
    }
  }
}

// Words of even and odd pixels for the low and the high output of a pair.
template <typename Use>
inline __attribute__((always_inline)) void resolve(__m256i a, __m256i b, const Use& use) {
  const __m256i byte = _mm256_set1_epi16(255);
  const __m256i high1 = _mm256_srli_epi16(b, 8);
  const __m256i rest = _mm256_sub_epi16(a, _mm256_slli_epi16(high1, 12));
  const __m256i low1 = _mm256_srli_epi16(rest, 8);
  const __m256i high0 = _mm256_and_si256(_mm256_sub_epi16(b, _mm256_slli_epi16(low1, 4)), byte);
  const __m256i low0 = _mm256_and_si256(_mm256_sub_epi16(rest, _mm256_slli_epi16(high0, 4)), byte);
  use(0, low0, low1);
  use(1, high0, high1);
}

// use(channel, p, even, odd, high): the counts of one output, counted from first_channel, at 32 positions; see `write`.
template <int P, int Q, typename Use>
inline __attribute__((always_inline)) void count_tile(const Counting& job, int64_t position, int first_channel,
                                                      int channels, const Use& use) {
  const uint8_t* cells = static_cast<const uint8_t*>(job.cells) + position;
  const uint8_t* weights = reinterpret_cast<const uint8_t*>(job.weights + first_channel) + 3;
  const int32_t* offsets = job.offsets;
  __m256i words[Q][P][2][2], high[Q][P][2][2];  // [pair][register][output][even, odd]: words + 256 high
  int64_t steps = job.steps;
  bool long_sums = false;
  __m256i a[Q][P], b[Q][P];
  for (int64_t chunk = 0; steps > kByteSteps; ++chunk) {
    add_chunk(cells, offsets, weights, kByteSteps, a, b);
    for (int q = 0; q < Q; ++q) {
      for (int p = 0; p < P; ++p) {
        resolve(a[q][p], b[q][p], [&](int i, __m256i even, __m256i odd) {
          __m256i* sums = words[q][p][i];
          sums[0] = chunk == 0 ? even : _mm256_add_epi16(sums[0], even);
          sums[1] = chunk == 0 ? odd : _mm256_add_epi16(sums[1], odd);
        });
      }
    }
    if (chunk % kWordChunks == kWordChunks - 1) {
      __m256i* word = &words[0][0][0][0];
      __m256i* more = &high[0][0][0][0];
      for (int i = 0; i < Q * P * 4; ++i) {
        more[i] = long_sums ? _mm256_add_epi16(more[i], _mm256_srli_epi16(word[i], 8)) : _mm256_srli_epi16(word[i], 8);
        word[i] = _mm256_and_si256(word[i], _mm256_set1_epi16(255));
      }
      long_sums = true;
    }
    steps -= kByteSteps;
    offsets += kByteSteps;
    weights += kByteSteps * kBlock * 4;
  }
  add_chunk(cells, offsets, weights, steps, a, b);
  for (int q = 0; q < Q; ++q) {
    for (int p = 0; p < P; ++p) {
      resolve(a[q][p], b[q][p], [&](int i, __m256i even, __m256i odd) {
        if (2 * q + i >= channels) return;
        if (job.steps > kByteSteps) {
          even = _mm256_add_epi16(words[q][p][i][0], even);
          odd = _mm256_add_epi16(words[q][p][i][1], odd);
        }
        use(2 * q + i, p, even, odd, long_sums ? high[q][p][i] : nullptr);
      });
    }
  }
}

template <int P, int Q>
void store_counts(const Counting& job, int64_t position, int first_channel, int channels, int32_t* counts,
                  int64_t stride) {
  count_tile<P, Q>(job, position, first_channel, channels,
                   [&](int o, int p, __m256i even, __m256i odd, const __m256i* high) {
                     write(even, odd, high, counts + (first_channel + o) * stride + p * kLanes);
                   });
}

void count(const Counting& job, int64_t first, int64_t positions, int channels, int32_t* counts, int64_t stride) {
  for (int64_t i = 0; i < positions; i += kTile * kLanes) {
    const bool wide = positions - i > kLanes;
    for (int o = 0; o < channels; o += 4) {
      const auto tile = channels - o > 2 ? (wide ? store_counts<kTile, 2> : store_counts<1, 2>)
                                         : (wide ? store_counts<kTile, 1> : store_counts<1, 1>);
      tile(job, first + i, o, channels - o, counts + i, stride);
    }
  }
}

// kShift: whether the activation has shifts. Without an activation all three are neutral.
template <bool kResidual, bool kRectify, bool kShift>
struct Affines {  // the same in every lane
  __m256 step, start, shift_in, shift_out, one, slope_or_one;

  explicit Affines(const Finish& f)
      : step(_mm256_set1_ps(f.step)),
        start(_mm256_set1_ps(f.start)),
        shift_in(_mm256_set1_ps(f.shift_in)),
        shift_out(_mm256_set1_ps(f.shift_out)),
        one(_mm256_set1_ps(1.0f)),
        slope_or_one(_mm256_xor_ps(_mm256_set1_ps(f.slope), one)) {}  // with 1 again, it is the slope

  // The first n results of 8, from count - middle.
  inline __attribute__((always_inline)) void operator()(__m256i sum, const float* residual, float* y, int64_t n) const {
    __m256 v = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), step, start);
    const __m256i lanes = first_lanes(n);
    if (kResidual) v = _mm256_add_ps(v, n >= 8 ? _mm256_loadu_ps(residual) : _mm256_maskload_ps(residual, lanes));
    if (kShift) v = _mm256_sub_ps(v, shift_in);
    if (kRectify) {
      const __m256 negative = _mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_LT_OQ);
      v = _mm256_mul_ps(v, _mm256_xor_ps(_mm256_and_ps(negative, slope_or_one), one));
    }
    if (kShift) v = _mm256_add_ps(v, shift_out);
    if (n >= 8) {
      _mm256_storeu_ps(y, v);
    } else {
      _mm256_maskstore_ps(y, lanes, v);
    }
  }
};

template <bool kResidual, bool kRectify, bool kShift>
void finish_as(const Finish& f, const int32_t* counts, const float* residual, float* y, int64_t n) {
  const Affines<kResidual, kRectify, kShift> affine(f);
  const __m256i middle = _mm256_set1_epi32(f.middle);
  for (int64_t i = 0; i < n; i += 8) {
    affine(_mm256_sub_epi32(load(counts + i), middle), kResidual ? residual + i : nullptr, y + i, n - i);
  }
}

// The first of `left` positions; ends, residual and y are those of the first output.
template <int P, int Q, bool kResidual, bool kRectify, bool kShift>
void unit_tile(const Counting& job, int64_t position, int first_channel, int channels, int64_t left,
               const Finish* ends, const float* residual, float* y, int64_t plane) {
  const auto use = [&](int o, int p, __m256i even, __m256i odd, const __m256i*) __attribute__((always_inline)) {
    const Affines<kResidual, kRectify, kShift> affine(ends[o]);
    const __m256i middle = _mm256_set1_epi16(static_cast<int16_t>(ends[o].middle));
    even = _mm256_sub_epi16(even, middle);
    odd = _mm256_sub_epi16(odd, middle);
    const __m256i low = _mm256_unpacklo_epi16(even, odd), high = _mm256_unpackhi_epi16(even, odd);
    const __m128i eights[4] = {_mm256_castsi256_si128(low), _mm256_castsi256_si128(high),
                               _mm256_extracti128_si256(low, 1), _mm256_extracti128_si256(high, 1)};
    const int64_t at = o * plane + p * kLanes, n = left - p * kLanes;
    const auto finish_eight = [&](int i, int64_t lanes) {
      affine(_mm256_cvtepi16_epi32(eights[i]), kResidual ? residual + at + 8 * i : nullptr, y + at + 8 * i, lanes);
    };
    if (n >= kLanes) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) finish_eight(i, 8);
    } else {
      for (int i = 0; 8 * i < n; ++i) finish_eight(i, n - 8 * i);
    }
  };
  count_tile<P, Q>(job, position, first_channel, channels, use);
}

template <bool kResidual, bool kRectify, bool kShift>
void unit_as(const Counting& job, const Finish* ends, int n, int64_t positions, const float* residual, float* y,
             int64_t plane) {
  for (int64_t i = 0; i < positions; i += kTile * kLanes) {
    const bool wide = positions - i > kLanes;
    for (int o = 0; o < n; o += 4) {
      const auto tile = n - o > 2 ? (wide ? unit_tile<kTile, 2, kResidual, kRectify, kShift>
                                          : unit_tile<1, 2, kResidual, kRectify, kShift>)
                                  : (wide ? unit_tile<kTile, 1, kResidual, kRectify, kShift>
                                          : unit_tile<1, 1, kResidual, kRectify, kShift>);
      const int64_t at = o * plane + i;
      tile(job, i, o, n - o, positions - i, ends + o, kResidual ? residual + at : nullptr, y + at, plane);
    }
  }
}

// For the forms of a template<kResidual, kRectify, kShift>, in the order of `kFinishes`.
int form(bool residual, bool rectify, bool shift) { return 3 * residual + rectify + (rectify && shift); }

bool shifts(const Finish& f) { return f.shift_in != 0 || f.shift_out != 0; }

void finish(const Finish& f, const int32_t* counts, const float* residual, float* y, int64_t n) {
  if (!f.finite) return finish_plainly(f, counts, residual, y, n);
  constexpr decltype(&finish_as<true, true, true>) kFinishes[] = {
      finish_as<false, false, false>, finish_as<false, true, false>, finish_as<false, true, true>,
      finish_as<true, false, false>,  finish_as<true, true, false>,  finish_as<true, true, true>};
  kFinishes[form(residual, f.rectify, shifts(f))](f, counts, residual, y, n);
}

void unit(const Counting& job, const Finish* channels, int n, int64_t positions, const float* residual, float* y,
          int64_t plane) {
  bool plain = job.steps >= kByteSteps * kWordChunks, shift = false;  // then counts need more than 16 bits
  for (int o = 0; o < n; ++o) {
    plain = plain || !channels[o].finite;
    shift = shift || shifts(channels[o]);
  }
  if (plain) return unit_plainly<kBlock, kStrip>(job, channels, n, positions, residual, y, plane, count, finish);
  constexpr decltype(&unit_as<true, true, true>) kUnits[] = {
      unit_as<false, false, false>, unit_as<false, true, false>, unit_as<false, true, true>,
      unit_as<true, false, false>,  unit_as<true, true, false>,  unit_as<true, true, true>};
  kUnits[form(residual, channels->rectify, shift)](job, channels, n, positions, residual, y, plane);
}

void threshold(const int32_t* counts, int32_t limit, int bit, uint32_t* words, int64_t n) {
  const __m256i most = _mm256_set1_epi32(limit), one = _mm256_set1_epi32(static_cast<int>(1u << bit));
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256i above = _mm256_and_si256(_mm256_cmpgt_epi32(load(counts + i), most), one);
    store(words + i, _mm256_or_si256(load(words + i), above));
  }
  for (; i < n; ++i) words[i] |= static_cast<uint32_t>(counts[i] > limit) << bit;
}

int64_t bound(int64_t rounds, uint32_t* sink) {
  constexpr int kSums = 4;
  __m256i a[kSums], b[kSums], table[3];
#pragma GCC unroll 4
  for (int i = 0; i < kSums; ++i) a[i] = b[i] = _mm256_set1_epi32(static_cast<int>(*sink) + i);
#pragma GCC unroll 3
  for (int n = 0; n < 3; ++n) table[n] = _mm256_set1_epi32(static_cast<int>(*sink) + 100 * n);
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < kSums; ++i) {
      __m256i sum = _mm256_shuffle_epi8(table[0], a[i]);
      sum = _mm256_add_epi8(sum, _mm256_shuffle_epi8(table[1], a[i]));
      sum = _mm256_add_epi8(sum, _mm256_shuffle_epi8(table[2], a[i]));
      a[i] = _mm256_add_epi8(a[i], sum);
      b[i] = _mm256_add_epi8(b[i], _mm256_srli_epi16(sum, 4));
      __asm__("" : "+x"(a[i]), "+x"(b[i]));  // in this order, it fits into the registers
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < kSums; ++i) {
    alignas(32) uint32_t words[8];
    store(words, _mm256_add_epi32(a[i], b[i]));
    for (uint32_t word : words) *sink += word;
  }
  return rounds * kSums * 3 * 2 * kLanes * 4;
}

}  // namespace

extern const Isa kAvx2;
const Isa kAvx2 = {"avx2",      1,     8,      kBlock,  kStrip, pack, place,
                   join_cells, weight_cell, count, finish, unit, threshold,          bound};

}  // namespace bnas
