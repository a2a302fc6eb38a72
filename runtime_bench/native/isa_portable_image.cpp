// Plain C++ in the registers of 128 bits that every processor of interest has, or what compilers make of them.
namespace bnas {
namespace {

constexpr int kLanes = 4, kRegisters = 2, kTiles = 5;

}  // namespace
}  // namespace bnas

#include "isa_image_loops.h"

namespace bnas {

extern const ImageIsa kPortableImage = kTable;

}  // namespace bnas
