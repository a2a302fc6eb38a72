// AVX-512: 2 x 14 sums, 2 registers of weights and one of input fill 31 registers.
namespace bnas {
namespace {

constexpr int kLanes = 16, kRegisters = 2, kTiles = 14;

}  // namespace
}  // namespace bnas

#include "isa_image_loops.h"

namespace bnas {

extern const ImageIsa kAvx512Image = kTable;

}  // namespace bnas
