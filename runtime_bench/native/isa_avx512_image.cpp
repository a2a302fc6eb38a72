// AVX-512: 2 x 10 sums. 2 x 14 would fit into the registers, but what they become less well into the first cache.
namespace bnas {
namespace {

constexpr int kLanes = 16, kRegisters = 2, kTiles = 10;

}  // namespace
}  // namespace bnas

#include "isa_image_loops.h"

namespace bnas {

extern const ImageIsa kAvx512Image = kTable;

}  // namespace bnas
