// The loops of isa_image.h over the compiler's own vectors. The file of an instruction set includes them once, behind
// its kLanes (floats of a register) and the block of sums that its registers hold: kRegisters x kTiles.
#pragma once

#include <cstring>
#include <utility>

#include "isa_image.h"
#include "toom_cook.h"

#define BNAS_INLINE inline __attribute__((always_inline))

namespace bnas {
namespace {

typedef float Vector __attribute__((vector_size(kLanes * 4)));
typedef int Lanes __attribute__((vector_size(kLanes * 4)));

BNAS_INLINE Vector load(const float* from) {
  Vector v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

BNAS_INLINE void store(float* to, Vector v) { std::memcpy(to, &v, sizeof v); }

// In all lanes. On AVX-512, once for all multiplications: as a part of each of them, there would be more loads than
// the ports can do.
BNAS_INLINE Vector broadcast(const float* value) {
#ifdef __AVX512F__
  Vector v;
  __asm__("vbroadcastss %1, %0" : "=v"(v) : "m"(*value));
  return v;
#else
  return *value - Vector{};
#endif
}

BNAS_INLINE Vector largest(Vector a, Vector b) { return a > b ? a : b; }

// The floats of `a` and then `b` at these places.
template <int... places>
BNAS_INLINE Vector chosen(Vector a, Vector b, std::integer_sequence<int, places...>) {
#ifdef __clang__
  return __builtin_shufflevector(a, b, places...);
#else
  return __builtin_shuffle(a, b, Lanes{places...});
#endif
}

template <int offset, int... lanes>
constexpr auto every_second(std::integer_sequence<int, lanes...>) {
  return std::integer_sequence<int, (2 * lanes + offset)...>();
}

// Blocks of `block` lanes of two registers: the even ones of both, or the odd ones.
template <int block, bool odd, int... lanes>
constexpr auto alternate(std::integer_sequence<int, lanes...>) {
  return std::integer_sequence<int,
                               ((lanes & block) ? kLanes + lanes - (odd ? 0 : block) : lanes + (odd ? block : 0))...>();
}

using All = std::make_integer_sequence<int, kLanes>;

void split(float* row, int64_t count, int64_t length, float* parts) {
  float *from = row, *to = parts;
  int64_t done = 1;
  for (; count / done % 2 == 0; done *= 2, std::swap(from, to)) {
    const int64_t half = count / done / 2 * length;
    for (int64_t part = 0; part < done; ++part) {
      const float* source = from + part * 2 * half;
      float *even = to + part * half, *odd = to + (part + done) * half;
      for (int64_t i = 0; i < half; i += kLanes, source += 2 * kLanes) {
        const Vector a = load(source), b = load(source + kLanes);
        store(even + i, chosen(a, b, every_second<0>(All())));
        store(odd + i, chosen(a, b, every_second<1>(All())));
      }
    }
  }
  const int64_t left = count / done;
  if (left > 1) {
    for (int64_t part = 0; part < done; ++part) {
      for (int64_t i = 0; i < left * length; ++i) {
        to[(part + i % left * done) * length + i / left] = from[part * left * length + i];
      }
    }
    std::swap(from, to);
  }
  if (from != parts) std::memcpy(parts, from, static_cast<size_t>(count * length) * sizeof(float));
}

template <int TAPS>
void transform_taps(const float* const* inputs, int64_t tiles, float* out, int64_t point_step) {
  static constexpr ToomCook m = toom_cook(TAPS);
  for (int64_t t = 0; t < tiles; t += kLanes) {
    Vector value[m.points];
#pragma GCC unroll 7
    for (int i = 0; i < m.points; ++i) value[i] = load(inputs[i] + t);
#pragma GCC unroll 7
    for (int p = 0; p < m.points; ++p) {
      Vector sum = {};
#pragma GCC unroll 7
      for (int i = 0; i < m.points; ++i) {
        if (m.input[p][i] != 0) sum += static_cast<float>(m.input[p][i]) * value[i];
      }
      store(out + p * point_step + t, sum);
    }
  }
}

void transform(int taps, const float* const* inputs, int64_t tiles, float* out, int64_t point_step) {
  if (taps == 1) return transform_taps<1>(inputs, tiles, out, point_step);
  if (taps == 2) return transform_taps<2>(inputs, tiles, out, point_step);
  if (taps == 3) return transform_taps<3>(inputs, tiles, out, point_step);
  transform_taps<4>(inputs, tiles, out, point_step);
}

// One point of R registers of channels and T tiles; products: [T, R, kLanes]. Gives what follows its weights.
template <int R, int T>
BNAS_INLINE const float* multiply(const ImageJob& job, const float* const* rows, int64_t offset, const float* weights,
                                  float* products) {
  Vector sum[T][R];
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) sum[t][r] = Vector{};
  }
  for (int64_t run = 0; run < job.runs_h; ++run) {
    const float* input = rows[run] + offset;
    for (int64_t d = 0; d < job.depth; ++d, input += job.step, weights += R * kLanes) {
      Vector weight[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) weight[r] = load(weights + r * kLanes);
#pragma GCC unroll 16
      for (int t = 0; t < T; ++t) {
        const Vector value = broadcast(input + t);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) sum[t][r] += value * weight[r];
      }
    }
  }
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) store(products + (t * R + r) * kLanes, sum[t][r]);
  }
  return weights;
}

// The 4 outputs that the points of `products` (`step` floats apart) make.
template <int TAPS>
BNAS_INLINE void outputs(const float* products, int64_t step, Vector* out) {
  static constexpr ToomCook m = toom_cook(TAPS);
  Vector value[m.points];
#pragma GCC unroll 7
  for (int p = 0; p < m.points; ++p) value[p] = load(products + p * step);
#pragma GCC unroll 2
  for (int p = 1; p < 1 + 2 * m.pairs; p += 2) {  // what even powers of the points take, and odd ones
    const Vector even = value[p] + value[p + 1], odd = value[p] - value[p + 1];
    value[p] = even, value[p + 1] = odd;
  }
#pragma GCC unroll 4
  for (int j = 0; j < kTileOutputs; ++j) {
    bool begun = false;
#pragma GCC unroll 7
    for (int p = 0; p < m.points; ++p) {
      const bool paired = p > 0 && p <= 2 * m.pairs;
      if (paired ? (p + j) % 2 == 0 : m.output[j][p] == 0) continue;
      const float power = static_cast<float>(m.output[j][paired ? (p - 1) / 2 * 2 + 1 : p]);
      out[j] = begun ? out[j] + power * value[p] : power * value[p];
      begun = true;
    }
  }
}

// Products of all points of a column, [points_h, size] -> out [4, kMostPoints, size], of which this is one point
// across.
template <int TAPS>
void finish_columns(const float* products, int64_t size, float* out) {
  for (int64_t i = 0; i < size; i += kLanes) {
    Vector sums[kTileOutputs];
    outputs<TAPS>(products + i, size, sums);
#pragma GCC unroll 4
    for (int j = 0; j < kTileOutputs; ++j) store(out + j * kMostPoints * size + i, sums[j]);
  }
}

// The same for the points of one row, [points_w, tiles, registers, lanes], and what follows the sums.
template <int TAPS>
void finish_row(const ImageJob& job, const float* products, int64_t registers, int64_t tiles, float* row,
                int64_t channels) {
  for (int64_t r = 0; r < registers; ++r) {
    const Vector bias = load(job.bias + r * kLanes), slope = load(job.slope + r * kLanes),
                 shift = load(job.shift + r * kLanes);
    for (int64_t t = 0; t < tiles; ++t) {
      Vector sums[kTileOutputs];
      outputs<TAPS>(products + (t * registers + r) * kLanes, registers * tiles * kLanes, sums);
#pragma GCC unroll 4
      for (int j = 0; j < kTileOutputs; ++j) {
        sums[j] += bias;
        if (job.rectify) sums[j] = (sums[j] < 0 ? sums[j] * slope : sums[j]) + shift;
        store(row + (t * kTileOutputs + j) * channels + r * kLanes, sums[j]);
      }
    }
  }
}

template <int R, int T>
void unit_of(const ImageJob& job, int64_t first, float* out, int64_t row, int64_t channels) {
  using Columns = void (*)(const float*, int64_t, float*);
  using Row = void (*)(const ImageJob&, const float*, int64_t, int64_t, float*, int64_t);
  static constexpr Columns columns[] = {finish_columns<1>, finish_columns<2>, finish_columns<3>, finish_columns<4>};
  static constexpr Row row_of[] = {finish_row<1>, finish_row<2>, finish_row<3>, finish_row<4>};
  constexpr int kSize = R * T * kLanes;
  alignas(64) float products[kMostPoints * kSize], sums[kTileOutputs * kMostPoints * kSize];
  const int points_h = job.taps_h + kTileOutputs - 1, points_w = job.taps_w + kTileOutputs - 1;
  const float* weights = job.weights;
  for (int across = 0; across < points_w; ++across) {
    for (int down = 0; down < points_h; ++down) {
      weights = multiply<R, T>(job, job.rows + down * job.runs_h, across * job.point_step + first, weights,
                               products + down * kSize);
    }
    columns[job.taps_h - 1](products, kSize, sums + across * kSize);
  }
  for (int j = 0; j < kTileOutputs; ++j) {
    row_of[job.taps_w - 1](job, sums + j * kMostPoints * kSize, R, T, out + j * row + first * kTileOutputs * channels,
                           channels);
  }
}

template <int R, int... tiles>
void unit_of_any(const ImageJob& job, int count, int64_t first, float* out, int64_t row, int64_t channels,
                 std::integer_sequence<int, tiles...>) {
  using Unit = void (*)(const ImageJob&, int64_t, float*, int64_t, int64_t);
  static constexpr Unit units[] = {unit_of<R, tiles + 1>...};
  units[count - 1](job, first, out, row, channels);
}

void unit(const ImageJob& job, int registers, int tiles, int64_t first, float* out, int64_t row, int64_t channels) {
  using Counts = std::make_integer_sequence<int, kTiles>;
  if (registers == kRegisters) return unit_of_any<kRegisters>(job, tiles, first, out, row, channels, Counts());
  unit_of_any<1>(job, tiles, first, out, row, channels, Counts());
}

// KERNEL: of the windows that lie inside of the row as a whole, or 0 for any.
template <int KERNEL>
void pool_windows(const float* row, int64_t channels, int64_t kernel, int64_t step, int64_t pixels, float* out) {
  for (; pixels > 0; --pixels, row += step * channels, out += channels) {
    for (int64_t c = 0; c < channels; c += kLanes) {
      const float* from = row + c;
      Vector v = load(from);
#pragma GCC unroll 3
      for (int64_t x = 1; x < (KERNEL ? KERNEL : kernel); ++x) v = largest(v, load(from + x * channels));
      store(out + c, v);
    }
  }
}

void pool(const float* row, int64_t width, int64_t channels, int64_t kernel, int64_t stride, int64_t pad,
          int64_t pixels, float* out) {
  const auto windows = kernel == 2 ? pool_windows<2> : kernel == 3 ? pool_windows<3> : pool_windows<0>;
  for (int64_t pixel = 0; pixel < pixels;) {
    const int64_t start = pixel * stride - pad, begin = start < 0 ? 0 : start;
    const int64_t end = start + kernel < width ? start + kernel : width;
    const int64_t whole =
        start < 0 || start + kernel > width ? 0 : (width - kernel - start) / stride + 1;  // windows from here on
    const int64_t count = whole < 1 ? 1 : whole < pixels - pixel ? whole : pixels - pixel;
    (whole < 1 ? pool_windows<0> : windows)(row + begin * channels, channels, end - begin, stride, count,
                                            out + pixel * channels);
    pixel += count;
  }
}

// Exchanges of blocks of `block` lanes, then of smaller ones: a[i][j] becomes a[j][i].
template <int block>
BNAS_INLINE void transpose(Vector* a) {
  if constexpr (block > 0) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      if (i & block) continue;
      const Vector low = a[i], high = a[i + block];
      a[i] = chosen(low, high, alternate<block, false>(All()));
      a[i + block] = chosen(low, high, alternate<block, true>(All()));
    }
    transpose<block / 2>(a);
  }
}

// COUNT: rows, or 0 for any number.
template <int COUNT>
void emit_rows(const float* const* rows, int64_t count, int64_t step, int64_t pixels, int64_t channels, float* y,
               int64_t plane) {
  for (int64_t c = 0; c < channels; c += kLanes) {
    const int64_t kept = channels - c < kLanes ? channels - c : kLanes;
    for (int64_t pixel = 0; pixel < pixels; pixel += kLanes) {
      if (pixel > 0 && pixel + kLanes > pixels) pixel = pixels - kLanes;  // some are written twice
      Vector values[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        const int64_t at = (pixel + i < pixels ? pixel + i : pixels - 1) * step + c;
        values[i] = load(rows[0] + at);
#pragma GCC unroll 3
        for (int64_t row = 1; row < (COUNT ? COUNT : count); ++row) {
          values[i] = largest(values[i], load(rows[row] + at));
        }
      }
      transpose<kLanes / 2>(values);
      float* to = y + c * plane + pixel;
      if (pixel + kLanes <= pixels && kept == kLanes) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) store(to + i * plane, values[i]);
      } else {
        const int64_t few = pixels - pixel < kLanes ? pixels - pixel : kLanes;
        for (int64_t i = 0; i < kept; ++i) std::memcpy(to + i * plane, &values[i], static_cast<size_t>(few) * 4);
      }
    }
  }
}

void emit(const float* const* rows, int64_t count, int64_t step, int64_t pixels, int64_t channels, float* y,
          int64_t plane) {
  const auto any = count == 1 ? emit_rows<1> : count == 2 ? emit_rows<2> : count == 3 ? emit_rows<3> : emit_rows<0>;
  any(rows, count, step, pixels, channels, y, plane);
}

constexpr ImageIsa kTable = {kLanes, kRegisters, kTiles, split, transform, unit, pool, emit};

}  // namespace
}  // namespace bnas
