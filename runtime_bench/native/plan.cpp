#include "plan.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

namespace bnas {
namespace {

constexpr int64_t kSlabBytes = int64_t{400} << 10;  // of float pixels: they stay in the second cache until reused
constexpr int64_t kTaskMacs = int64_t{16} << 20;    // binary MACs worth handing over to another thread

// Taps read index (position + offset) of the plane of their residue.
Plan::Axis axis(int64_t kernel, int64_t stride, int64_t dilation, int64_t outputs) {
  Plan::Axis axis;
  for (int64_t tap = 0; tap < kernel; ++tap) {
    const int64_t residue = tap * dilation % stride, offset = tap * dilation / stride;
    auto found = std::find_if(axis.residues.begin(), axis.residues.end(),
                              [&](const Plan::Residue& r) { return r.residue == residue; });
    if (found == axis.residues.end()) found = axis.residues.insert(found, {residue, 0, 0, 0});
    found->needed = std::max(found->needed, outputs + offset);
    axis.tap_residue.push_back(found - axis.residues.begin());
    axis.tap_offset.push_back(offset);
  }
  return axis;
}

}  // namespace

Plan make_plan(const ConvShape& s, const Isa& isa) {
  Plan plan;
  plan.height = s.height;
  plan.width = s.width;
  plan.words = words_of(s.group_channels());
  plan.out_width = s.out_width();

  const int64_t row_bytes = s.channels * s.width * 4 * s.stride_h;
  const int64_t most_rows = std::max<int64_t>(1, kSlabBytes / row_bytes);
  plan.slabs = ceil_div(s.out_height(), most_rows);
  plan.slab_rows = ceil_div(s.out_height(), plan.slabs);
  plan.slabs = ceil_div(s.out_height(), plan.slab_rows);
  const int64_t blocks = s.groups * ceil_div(s.group_outputs(), isa.block);
  const int64_t slab_macs = plan.slab_rows * plan.out_width * s.out_channels * s.fan_in();
  plan.range_blocks = ceil_div(blocks, std::clamp<int64_t>(ceil_div(slab_macs, kTaskMacs), 1, blocks));
  plan.ranges = ceil_div(blocks, plan.range_blocks);

  plan.rows = axis(s.kernel_h, s.stride_h, s.dilation_h, plan.slab_rows);
  plan.columns = axis(s.kernel_w, s.stride_w, s.dilation_w, plan.out_width);
  int64_t columns = 0, rows = 0;
  plan.row_span = 0;
  for (const Plan::Residue& r : plan.rows.residues) {
    rows = std::max(rows, r.needed);
    plan.row_span = std::max(plan.row_span, (r.needed - 1) * s.stride_h + r.residue + 1);
  }
  // A read past the end of a row must fall into padding: the end of this row or the start of the next one.
  plan.pitch = plan.out_width;
  for (Plan::Residue& r : plan.columns.residues) {  // index j shows image pixel j * stride + residue - pad_left
    const int64_t base = s.pad_left - r.residue, last = s.width - 1 + base;
    r.first = std::min(base > 0 ? ceil_div(base, s.stride_w) : 0, r.needed);
    r.last = std::clamp(last < 0 ? 0 : last / s.stride_w + 1, r.first, r.needed);
    plan.pitch = std::max({plan.pitch, r.last, r.needed - r.first});
    columns = std::max(columns, r.needed);
  }
  const int64_t pairs = static_cast<int64_t>(plan.rows.residues.size() * plan.columns.residues.size());
  plan.plane_cells = rows * plan.pitch + std::max<int64_t>(columns - plan.pitch, 0);
  plan.cell_plane = plan.plane_cells * pairs;
  plan.word_cells = plan.cell_plane * isa.cells_per_word;
  plan.slab_cells = plan.word_cells * plan.words * s.groups;
  if (plan.slab_cells > std::numeric_limits<int32_t>::max()) throw std::length_error("the image is too large");

  for (int64_t ky = 0; ky < s.kernel_h; ++ky) {
    for (int64_t kx = 0; kx < s.kernel_w; ++kx) {
      const int64_t pair = plan.rows.tap_residue[ky] * static_cast<int64_t>(plan.columns.residues.size()) +
                           plan.columns.tap_residue[kx];
      const int64_t at = pair * plan.plane_cells + plan.rows.tap_offset[ky] * plan.pitch + plan.columns.tap_offset[kx];
      for (int64_t word = 0; word < plan.words; ++word) {
        for (int cell = 0; cell < isa.cells_per_word; ++cell) {
          plan.offsets.push_back(static_cast<int32_t>(word * plan.word_cells + cell * plan.cell_plane + at));
        }
      }
    }
  }
  const int64_t positions = plan.positions(plan.slab_rows);
  plan.valid.assign(static_cast<size_t>(ceil_div(positions, 16)), 0);
  for (int64_t p = 0; p < positions; ++p) {
    if (p % plan.pitch < plan.out_width) plan.valid[p / 16] |= static_cast<uint16_t>(1u << p % 16);
  }
  return plan;
}

}  // namespace bnas
