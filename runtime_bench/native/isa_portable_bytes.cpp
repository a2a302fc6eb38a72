// Plain C++: pairs of 16 bits, in loops that compilers turn into vectors.
#include "isa_bytes.h"

namespace bnas {
namespace {

constexpr int kBlock = 4;
constexpr int kLanes = 16;  // positions side by side

void unit(const ByteJob& job, const ByteFinish* channels, int n, const ByteEnd& end, int64_t positions, float* y,
          int64_t plane) {
  for (int64_t first = 0; first < positions; first += kLanes) {
    const int lanes = static_cast<int>(positions - first < kLanes ? positions - first : kLanes);
    for (int o = 0; o < n; ++o) {
      int32_t sums[kLanes] = {};
      for (int64_t s = 0; s < job.steps; ++s) {
        const uint32_t* cells = job.cells + job.offsets[s] + first;
        const uint32_t weight = job.weights[s * kBlock + o];
        const int32_t low = static_cast<int16_t>(weight), high = static_cast<int16_t>(weight >> 16);
        for (int i = 0; i < kLanes; ++i) {
          sums[i] += static_cast<int16_t>(cells[i]) * low + static_cast<int16_t>(cells[i] >> 16) * high;
        }
      }
      for (int i = 0; i < lanes; ++i) y[o * plane + first + i] = finish_value(sums[i], channels[o], end);
    }
  }
}

}  // namespace

extern const ByteIsa kPortableBytes = {2, kBlock, quantize_levels, place_pairs, unit};

}  // namespace bnas
