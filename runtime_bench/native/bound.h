// What a processor can count at best: the bound that the times of the kernels are compared with.
#pragma once

#include "dispatch.h"

namespace bnas {

// 10^9 binary multiply-accumulates a second of xor + popcount + add on registers alone, on one thread: the fastest of
// many short runs within `seconds`, which is what the processor can do when nothing disturbs it. path.isa is not null.
double bound_gmacs(const Path& path, double seconds);

}  // namespace bnas
