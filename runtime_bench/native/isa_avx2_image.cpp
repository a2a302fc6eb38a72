// AVX2 with FMA: 2 x 6 sums, 2 registers of weights and one of input fill 15 registers.
namespace bnas {
namespace {

constexpr int kLanes = 8, kRegisters = 2, kTiles = 6;

}  // namespace
}  // namespace bnas

#include "isa_image_loops.h"

namespace bnas {

extern const ImageIsa kAvx2Image = kTable;

}  // namespace bnas
