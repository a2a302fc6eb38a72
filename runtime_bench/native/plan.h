// How the work of one convolution is cut, and where its packed pixels lie, for one image size and instruction set.
#pragma once

#include <cstdint>
#include <vector>

#include "isa.h"
#include "shape.h"

namespace bnas {

// Output rows are made in slabs: a slab's pixels are packed and used while the caches still hold them. A task is a
// slab and a range of output channels; it packs for itself, so that tasks never wait for each other.
//
// With stride s, the pixels that one kernel tap reads are s apart. They are kept together: a plane holds the padded
// rows (or columns) of one residue modulo s, so that a tap reads neighbours and the stride disappears.
struct Plan {
  struct Residue {
    int64_t residue;
    int64_t needed;       // indices within the plane that some tap reads
    int64_t first, last;  // columns only: indices that hold image pixels; the rest is padding
  };
  struct Axis {
    std::vector<Residue> residues;  // those that some tap reads
    std::vector<int64_t> tap_residue, tap_offset;
  };

  int64_t height, width;  // of the image it was made for
  int64_t words;          // in each group
  int64_t out_width;
  int64_t slab_rows, slabs;  // output rows of a slab; the last slab may have fewer
  int64_t ranges, range_blocks;

  Axis rows, columns;
  int64_t row_span;     // input rows of a slab, counted from the first one that it reads
  int64_t pitch;        // cells from one row of a plane to the next: its right padding is the next row's left padding
  int64_t plane_cells;  // of one cell of one word, one residue pair
  int64_t cell_plane;   // from one cell of a word to the next: plane_cells * residue pairs
  int64_t word_cells;   // of all planes of a word
  int64_t slab_cells;   // of all words of all groups

  std::vector<int32_t> offsets;  // [steps]: (tap, word, cell) in this order
  std::vector<uint16_t> valid;   // one bit per position of a slab

  int64_t positions(int64_t rows_made) const { return (rows_made - 1) * pitch + out_width; }

  // Output pixel of a position, counted from the slab's first, row by row without junk.
  int64_t compact(int64_t position) const {
    const int64_t column = position % pitch;
    return position / pitch * out_width + (column < out_width ? column : out_width);
  }
};

// Throws std::length_error if the image is too large for 32-bit offsets.
Plan make_plan(const ConvShape& shape, const Isa& isa);

}  // namespace bnas
