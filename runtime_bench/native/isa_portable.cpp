// Plain C++: for processors without a path of their own. Words as cells, the compiler's popcount.
#include "isa.h"

namespace bnas {
namespace {

constexpr int kBlock = 4;

void pack(const float* x, int64_t plane, const float* shift, int64_t shift_step, int64_t channels, int64_t pixels,
          uint32_t* words) {
  for (int64_t p = 0; p < pixels; ++p) words[p] = 0;
  for (int64_t c = 0; c < channels; ++c) {
    const float threshold = shift[c * shift_step];
    for (int64_t p = 0; p < pixels; ++p) words[p] |= static_cast<uint32_t>(x[c * plane + p] < threshold) << c;
  }
}

void place(const uint32_t* words, int64_t step, int64_t n, void* cells, int64_t) {
  uint32_t* target = static_cast<uint32_t*>(cells);
  for (int64_t i = 0; i < n; ++i) target[i] = words[i * step];
}

uint32_t weight_cell(uint32_t word, int) { return word; }

void count(const Counting& job, int64_t first, int64_t positions, int channels, int32_t* counts, int64_t stride) {
  const uint32_t* cells = static_cast<const uint32_t*>(job.cells) + first;
  for (int64_t i = 0; i < positions; ++i) {
    int32_t sums[kBlock] = {};
    for (int64_t s = 0; s < job.steps; ++s) {
      const uint32_t cell = cells[job.offsets[s] + i];
      for (int o = 0; o < kBlock; ++o) sums[o] += __builtin_popcount(cell ^ job.weights[s * kBlock + o]);
    }
    for (int o = 0; o < channels; ++o) counts[o * stride + i] = sums[o];
  }
}

void finish(const Finish& f, const int32_t* counts, const float* residual, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    float v = (f.fan_in - 2.0f * static_cast<float>(counts[i])) * f.scale + f.bias;
    if (residual) v += residual[i];
    if (f.rectify) {
      v -= f.shift_in;
      v = (v < 0 ? v * f.slope : v) + f.shift_out;
    }
    y[i] = v;
  }
}

void threshold(const int32_t* counts, int32_t limit, int bit, uint32_t* words, int64_t n) {
  for (int64_t i = 0; i < n; ++i) words[i] |= static_cast<uint32_t>(counts[i] > limit) << bit;
}

int64_t bound(int64_t rounds, uint32_t* sink) {
  uint32_t words[8] = {1, 2, 3, 4, 5, 6, 7, 8}, sums[8] = {};
  uint32_t weight = *sink;
  for (int64_t r = 0; r < rounds; ++r) {
    for (int i = 0; i < 8; ++i) sums[i] += static_cast<uint32_t>(__builtin_popcount(words[i] ^ weight));
    weight += sums[0];
  }
  for (uint32_t sum : sums) *sink += sum;
  return rounds * 8 * 32;
}

}  // namespace

extern const Isa kPortable;
const Isa kPortable = {"portable", 4,    1,     kBlock,    256,    false, 0, pack,
                       place,      weight_cell, count, finish, nullptr, threshold, bound};

}  // namespace bnas
