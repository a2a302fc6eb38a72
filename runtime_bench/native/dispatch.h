// Which instruction set runs. The only place that knows what the processor can do.
#pragma once

#include <string>
#include <vector>

#include "isa.h"

namespace bnas {

struct ByteIsa;
struct ImageIsa;
struct NhwcIsa;

// Null in the table means "reference": the naive loops that are the specification.
struct Path {
  const char* name;  // "reference", "portable", "avx2", "avx512", "neon"
  const Isa* isa;
  const ByteIsa* bytes;
  const ImageIsa* image;
  const NhwcIsa* nhwc = nullptr;  // null: images with channels beside each other go through `isa`, see nhwc.h
};

// The paths this processor can run, the slowest first; never empty.
const std::vector<Path>& paths();

// The path of `name`, or the fastest if it is empty. Throws std::invalid_argument naming what there is.
const Path& path(const std::string& name);

// The path that BNAS_ISA names, else the fastest. Throws as `path` does.
const Path& selected_path();

}  // namespace bnas
