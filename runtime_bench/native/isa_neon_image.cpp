// NEON: 4 x 6 sums, 4 registers of weights and one of input fill 29 registers.
namespace bnas {
namespace {

constexpr int kLanes = 4, kRegisters = 4, kTiles = 6;

}  // namespace
}  // namespace bnas

#include "isa_image_loops.h"

namespace bnas {

extern const ImageIsa kNeonImage = kTable;

}  // namespace bnas
