#include "plan.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

namespace bnas {
namespace {

Plan::Axis axis(int64_t size, int64_t before, int64_t kernel, int64_t stride, int64_t dilation, int64_t outputs) {
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
  for (Plan::Residue& r : axis.residues) {  // index j shows image pixel j * stride + residue - before
    const int64_t base = before - r.residue;
    r.first = std::min(base > 0 ? ceil_div(base, stride) : 0, r.needed);
    const int64_t last = size - 1 + base;
    r.last = std::clamp(last < 0 ? 0 : last / stride + 1, r.first, r.needed);
  }
  return axis;
}

}  // namespace

Plan make_plan(const ConvShape& s, const Isa& isa, int64_t task_macs, int64_t run_pixels) {
  Plan plan;
  plan.height = s.height;
  plan.width = s.width;
  plan.groups = s.groups;
  plan.words = words_of(s.group_channels());
  plan.rows = axis(s.height, s.pad_top, s.kernel_h, s.stride_h, s.dilation_h, s.out_height());
  plan.columns = axis(s.width, s.pad_left, s.kernel_w, s.stride_w, s.dilation_w, s.out_width());
  plan.out_width = s.out_width();

  // A read past the end of a row must fall into padding: the end of this row or the start of the next one.
  plan.pitch = plan.out_width;
  int64_t columns = 0, rows = 0;
  for (const Plan::Residue& r : plan.columns.residues) {
    plan.pitch = std::max({plan.pitch, r.last, r.needed - r.first});
    columns = std::max(columns, r.needed);
  }
  for (const Plan::Residue& r : plan.rows.residues) rows = std::max(rows, r.needed);
  const int64_t pairs = static_cast<int64_t>(plan.rows.residues.size() * plan.columns.residues.size());
  plan.plane_cells = rows * plan.pitch + std::max<int64_t>(columns - plan.pitch, 0);
  plan.cell_plane = plan.plane_cells * pairs;
  plan.word_cells = plan.cell_plane * isa.cells_per_word;
  plan.image_cells = plan.word_cells * plan.words * plan.groups;
  if (plan.image_cells > std::numeric_limits<int32_t>::max()) throw std::length_error("the image is too large");

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

  plan.positions = (s.out_height() - 1) * plan.pitch + plan.out_width;
  plan.valid.assign(static_cast<size_t>(ceil_div(plan.positions, 16)), 0);
  for (int64_t p = 0; p < plan.positions; ++p) {
    if (p % plan.pitch < plan.out_width) plan.valid[p / 16] |= static_cast<uint16_t>(1u << p % 16);
  }
  const int64_t strip_macs = isa.strip * isa.block * static_cast<int64_t>(plan.offsets.size()) * 32 / isa.cells_per_word;
  plan.chunk = std::max<int64_t>(1, task_macs / strip_macs) * isa.strip;
  plan.chunks = ceil_div(plan.positions, plan.chunk);

  plan.row_residue.assign(static_cast<size_t>(s.height), -1);
  plan.row_index.assign(static_cast<size_t>(s.height), 0);
  for (size_t i = 0; i < plan.rows.residues.size(); ++i) {
    const Plan::Residue& r = plan.rows.residues[i];
    for (int64_t j = r.first; j < r.last; ++j) {
      const int64_t row = j * s.stride_h + r.residue - s.pad_top;
      plan.row_residue[row] = static_cast<int64_t>(i);
      plan.row_index[row] = j;
    }
  }
  plan.rows_per_run = std::max<int64_t>(1, run_pixels / s.width);
  plan.row_runs = ceil_div(s.height, plan.rows_per_run);
  return plan;
}

}  // namespace bnas
