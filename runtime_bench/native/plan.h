// Where the packed image of one convolution lies, for one image size and one instruction set.
#pragma once

#include <cstdint>
#include <vector>

#include "isa.h"
#include "shape.h"

namespace bnas {

// With stride s, the pixels that one kernel tap reads are s apart. They are kept together: a plane holds the padded
// rows (or columns) of one residue modulo s, so that a tap reads neighbours and stride disappears.
struct Plan {
  struct Residue {
    int64_t residue;
    int64_t first, last;  // indices within the plane that hold image pixels; the rest is padding
    int64_t needed;       // indices that some tap reads
  };
  struct Axis {
    std::vector<Residue> residues;  // those that some tap reads
    std::vector<int64_t> tap_residue, tap_offset;
  };

  int64_t height, width;  // of the image it was made for
  int64_t groups, words;  // words in each group
  Axis rows, columns;
  int64_t pitch;        // cells from one row of a plane to the next: its right padding is the next row's left padding
  int64_t plane_cells;  // of one cell of one word, one residue pair
  int64_t cell_plane;   // from one cell of a word to the next: plane_cells * residue pairs
  int64_t word_cells;   // of all planes of a word
  int64_t image_cells;  // of all words of all groups

  std::vector<int32_t> offsets;  // [steps]: (tap, word, cell) in this order
  int64_t out_width;
  int64_t positions;            // lanes needed: rows of `pitch`, the last one without its end
  std::vector<uint16_t> valid;  // one bit per position
  int64_t chunk, chunks;        // positions of one task, a multiple of the instruction set's strip
  int64_t rows_per_run, row_runs;

  // Index among rows.residues of an image row, -1 if no tap reads it; and its row in that plane.
  int64_t row_of(int64_t row) const { return row_residue[static_cast<size_t>(row)]; }
  int64_t row_in_plane(int64_t row) const { return row_index[static_cast<size_t>(row)]; }
  std::vector<int64_t> row_residue, row_index;

  // Output pixel, row by row without junk, of a position.
  int64_t compact(int64_t position) const {
    const int64_t column = position % pitch;
    return position / pitch * out_width + (column < out_width ? column : out_width);
  }
};

// Throws std::length_error if the image is too large for 32-bit offsets.
Plan make_plan(const ConvShape& shape, const Isa& isa, int64_t task_macs, int64_t run_pixels);

}  // namespace bnas
