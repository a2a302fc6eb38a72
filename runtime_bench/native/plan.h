// How the work of one convolution is cut, and where its packed pixels lie.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "isa.h"
#include "shape.h"

namespace bnas {

// What the counting loop takes at once: a cell of channels as some taps of the kernel read it.
struct Step {
  struct Tap {
    int64_t row, column;
  };

  int64_t word, cell, bits;  // cell of the channel word, and how many channels it has
  std::vector<Tap> taps;     // more than one, side by side, where one would leave half of the cell empty
};

// All that a group of `shape` needs, in the order in which it is counted.
std::vector<Step> steps_of(const ConvShape& shape, const Isa& isa);

// An image is packed once, into planes that all tasks of a call share. A task makes a slab of output rows for a range
// of output channels. If a slab is one task, that packs the rows that no other one reads, so that they are still in the
// second cache when a unit adds them as its residual; all other rows are packed before the tasks.
//
// A plane has one cell for each output column, so planes are as wide as the output and rows follow each other without
// gaps: lane i of a load is output pixel i, whatever the padding, stride and dilation. Kernel columns have planes of
// their own; kernel rows are offsets of whole rows. With a vertical stride s, the rows that one kernel row reads are s
// apart, so the rows of each residue modulo s are kept together. Taps that share cells are joined from such planes.
struct Plan {
  struct Column {  // of the kernel: output column i reads pixel i * stride + at, which is inside for i in [begin, end)
    int64_t at, begin, end;
  };

  // A plane of the size of the output: its cell i is cells taps[j] + i, for all j, shifted by j * bits.
  struct Join {
    int64_t cell;
    int bits;
    std::vector<int64_t> taps;
  };

  int64_t height, width;  // of the image it was made for
  int64_t out_height, out_width;
  int64_t slab_rows, slabs;      // output rows of a slab; the last slab may have fewer
  int64_t ranges, range_blocks;  // a range's channels fill whole words of a bits tensor

  std::vector<Column> columns;     // one for each kernel column
  std::vector<int64_t> row_cells;  // where each row, from the first one that is read, of the padding if there is any,
                                   // begins in the planes of a cell; -1 if no kernel row reads it
  int64_t cell_plane;              // from one cell of a word to the next: a plane for each residue
  int64_t tap_cells, word_cells;   // from one kernel column to the next, and from one word
  int64_t group_cells, image_cells;
  int64_t row_step, extent;  // output row i reads rows [i * row_step, i * row_step + extent), counted as in row_cells

  std::vector<Join> joins;
  std::vector<int32_t> offsets;  // [steps]

  int64_t first_row(int64_t slab) const { return std::min(slab * slab_rows, out_height); }
  // Rows [first_read, last_read) are what a slab reads.
  int64_t first_read(int64_t slab) const { return first_row(slab) * row_step; }
  int64_t last_read(int64_t slab) const { return (first_row(slab + 1) - 1) * row_step + extent; }
};

// Throws std::length_error if the image is too large for 32-bit offsets.
Plan make_plan(const ConvShape& shape, const Isa& isa);

}  // namespace bnas
