// How the work of one convolution is cut, and where its packed pixels lie.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "isa.h"
#include "shape.h"

namespace bnas {

// What one plane of cells shows: for each output column, the bits of one channel word (32 channels, or what is left of
// them) that kernel columns [tap, tap + taps) read, side by side in one word. Full words take one kernel column each.
struct Source {
  int64_t word;
  int64_t bits;  // channels in the word
  int64_t tap, taps;

  int64_t cells(const Isa& isa) const { return ceil_div(bits * taps, kWordBits / isa.cells_per_word); }
};

// All that a group of `shape` needs. Each step of the counting loop is (kernel row, source, cell), in this order.
std::vector<Source> sources_of(const ConvShape& shape);

// An image is packed once, into planes that all tasks of a call share. A task makes a slab of output rows for a range
// of output channels. If a slab is one task, that packs the rows that no other one reads, so that they are still in the
// second cache when a unit adds them as its residual; all other rows are packed before the tasks.
//
// A plane has one cell for each output column, so planes are as wide as the output and rows follow each other without
// gaps: lane i of a load is output pixel i, whatever the padding, stride and dilation. Kernel columns have planes of
// their own; kernel rows are offsets of whole rows. With a vertical stride s, the rows that one kernel row reads are s
// apart, so the rows of each residue modulo s are kept together.
struct Plan {
  struct Column {  // of the kernel: output column i reads pixel i * stride + at, which is inside for i in [begin, end)
    int64_t at, begin, end;
  };

  int64_t height, width;  // of the image it was made for
  int64_t out_height, out_width;
  int64_t slab_rows, slabs;      // output rows of a slab; the last slab may have fewer
  int64_t ranges, range_blocks;  // a range's channels fill whole words of a bits tensor

  std::vector<Source> sources;
  std::vector<int64_t> source_cells;  // where each one's planes begin within a group; one more, the end
  std::vector<Column> columns;        // one for each kernel column
  std::vector<int64_t> row_cells;  // where each row, from the first one that is read, of the padding if there is any,
                                   // begins in the planes of a cell; -1 if no kernel row reads it
  int64_t cell_plane;              // from one cell of a word to the next: a plane for each residue
  int64_t image_cells;             // of all groups
  bool padded;                     // some cells show padding
  int64_t row_step, extent;  // output row i reads rows [i * row_step, i * row_step + extent), counted as in row_cells

  std::vector<int32_t> offsets;  // [steps]

  int64_t first_row(int64_t slab) const { return std::min(slab * slab_rows, out_height); }
  // Rows [first_read, last_read) are what a slab reads.
  int64_t first_read(int64_t slab) const { return first_row(slab) * row_step; }
  int64_t last_read(int64_t slab) const { return (first_row(slab + 1) - 1) * row_step + extent; }
};

// Throws std::length_error if the image is too large for 32-bit offsets.
Plan make_plan(const ConvShape& shape, const Isa& isa);

}  // namespace bnas
