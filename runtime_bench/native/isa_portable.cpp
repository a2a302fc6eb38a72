// Plain C++: for processors without a path of their own. Words as cells; loops that compilers turn into vectors.
#include "isa.h"

namespace bnas {
namespace {

constexpr int kBlock = 4;
constexpr int kLanes = 16;          // positions counted side by side
constexpr int64_t kByteSteps = 31;  // of at most 8 each that a byte can hold

void pack(const float* x, int64_t plane, const float* shift, int64_t shift_step, int64_t channels, int64_t pixels,
          uint32_t* words) {
  for (int64_t p = 0; p < pixels; ++p) words[p] = 0;
  for (int64_t c = 0; c < channels; ++c) {
    const float threshold = shift[c * shift_step];
    const float* source = x + c * plane;
    const uint32_t bit = 1u << c;
    for (int64_t p = 0; p < pixels; ++p) words[p] |= source[p] < threshold ? bit : 0u;
  }
}

void place(const uint32_t* words, int64_t step, int64_t n, void* cells, int64_t) {
  uint32_t* target = static_cast<uint32_t*>(cells);
  for (int64_t i = 0; i < n; ++i) target[i] = words[i * step];
}

uint32_t weight_cell(uint32_t word, int) { return word; }

// The set bits of each byte.
uint32_t byte_counts(uint32_t bits) {
  bits -= bits >> 1 & 0x55555555u;
  bits = (bits & 0x33333333u) + (bits >> 2 & 0x33333333u);
  return (bits + (bits >> 4)) & 0x0f0f0f0fu;
}

void count(const Counting& job, int64_t first, int64_t positions, int channels, int32_t* counts, int64_t stride) {
  const uint32_t* cells = static_cast<const uint32_t*>(job.cells) + first;
  for (int64_t i = 0; i < positions; i += kLanes) {
    for (int o = 0; o < channels; ++o) {
      uint32_t sums[kLanes] = {};
      for (int64_t begin = 0; begin < job.steps; begin += kByteSteps) {
        const int64_t end = begin + kByteSteps < job.steps ? begin + kByteSteps : job.steps;
        uint32_t bytes[kLanes] = {};
        for (int64_t s = begin; s < end; ++s) {
          const uint32_t* source = cells + job.offsets[s] + i;
          const uint32_t weight = job.weights[s * kBlock + o];
          for (int p = 0; p < kLanes; ++p) bytes[p] += byte_counts(source[p] ^ weight);
        }
        for (int p = 0; p < kLanes; ++p) {
          const uint32_t pairs = (bytes[p] & 0x00ff00ffu) + (bytes[p] >> 8 & 0x00ff00ffu);
          sums[p] += (pairs & 0xffff) + (pairs >> 16);
        }
      }
      for (int p = 0; p < kLanes; ++p) counts[o * stride + i + p] = static_cast<int32_t>(sums[p]);
    }
  }
}

void threshold(const int32_t* counts, int32_t limit, int bit, uint32_t* words, int64_t n) {
  for (int64_t i = 0; i < n; ++i) words[i] |= static_cast<uint32_t>(counts[i] > limit) << bit;
}

int64_t bound(int64_t rounds, uint32_t* sink) {
  uint32_t words[kLanes], bytes[kLanes] = {};
  for (int p = 0; p < kLanes; ++p) words[p] = *sink + static_cast<uint32_t>(p);
  for (int64_t r = 0; r < rounds; ++r) {
    const uint32_t weight = static_cast<uint32_t>(r) ^ bytes[0];
    for (int p = 0; p < kLanes; ++p) bytes[p] += byte_counts(words[p] ^ weight);
  }
  for (uint32_t sum : bytes) *sink += sum;
  return rounds * kLanes * 32;
}

}  // namespace

extern const Isa kPortable;
const Isa kPortable = {"portable", 4,           1,     kBlock,         256,     pack,      place,
                       join_cells, weight_cell, count, finish_plainly, nullptr, threshold, bound};

}  // namespace bnas
