#include "plan.h"

#include <algorithm>
#include <limits>
#include <map>
#include <stdexcept>
#include <utility>

namespace bnas {
namespace {

constexpr int64_t kImageBytes = int64_t{1} << 20;   // of float pixels: an image that need not be cut
constexpr int64_t kSlabBytes = int64_t{400} << 10;  // the same of a slab: they stay in the second cache until reused
constexpr int64_t kSharedMacs = int64_t{48} << 20;  // binary MACs worth sharing with another thread
constexpr int64_t kTaskMacs = int64_t{16} << 20;    // of a task then
constexpr int64_t kOutputMacs = 128;                // what finishing an output costs, in binary MACs
constexpr int64_t kManyTasks = 8;                   // enough to keep threads busy

void cut(const ConvShape& s, const Isa& isa, Plan* plan) {
  const int64_t row_bytes = s.channels * s.width * 4 * s.stride_h;
  const int64_t most = s.channels * s.width * 4 * s.height <= kImageBytes ? s.out_height() : kSlabBytes / row_bytes;
  plan->slabs = ceil_div(s.out_height(), std::max<int64_t>(1, most));
  plan->slab_rows = ceil_div(s.out_height(), plan->slabs);
  plan->slabs = ceil_div(s.out_height(), plan->slab_rows);

  const int64_t outputs = s.out_height() * s.out_width() * s.out_channels;
  const int64_t macs = outputs * (s.fan_in() + kOutputMacs);
  const int64_t tasks = macs < kSharedMacs ? 1 : ceil_div(macs, 2 * kTaskMacs) * 2;  // even, for two threads
  const int64_t ranges = plan->slabs >= kManyTasks ? 1 : ceil_div(tasks, plan->slabs);
  const int64_t blocks = s.groups * ceil_div(s.group_outputs(), isa.block), whole = kWordBits / isa.block;
  plan->range_blocks = ceil_div(ceil_div(blocks, std::min(ranges, blocks)), whole) * whole;
  plan->ranges = ceil_div(blocks, plan->range_blocks);
}

}  // namespace

std::vector<Step> steps_of(const ConvShape& s, const Isa& isa) {
  const int64_t room = kWordBits / isa.cells_per_word;
  std::vector<Step> steps;
  size_t open = 0;  // the step after the last one that taps may share; only one cell of the channels has so few
  for (int64_t row = 0; row < s.kernel_h; ++row) {
    for (int64_t word = 0; word < words_of(s.group_channels()); ++word) {
      const int64_t bits = std::min(kWordBits, s.group_channels() - word * kWordBits);
      for (int64_t column = 0; column < s.kernel_w; ++column) {
        for (int64_t cell = 0; cell * room < bits; ++cell) {
          const int64_t in_cell = std::min(room, bits - cell * room);
          const bool shares = 2 * in_cell <= room;
          if (shares && open > 0 && static_cast<int64_t>(steps[open - 1].taps.size() + 1) * in_cell <= room) {
            steps[open - 1].taps.push_back({row, column});
          } else {
            steps.push_back({word, cell, in_cell, {{row, column}}});
            if (shares) open = steps.size();
          }
        }
      }
    }
  }
  return steps;
}

Plan make_plan(const ConvShape& s, const Isa& isa) {
  Plan plan;
  plan.height = s.height;
  plan.width = s.width;
  plan.out_height = s.out_height();
  plan.out_width = s.out_width();
  plan.row_step = s.stride_h;
  plan.extent = (s.kernel_h - 1) * s.dilation_h + 1;

  cut(s, isa, &plan);

  struct Rows {
    int64_t index, needed;  // among the residues; how many rows of it some kernel row reads
  };
  std::map<int64_t, Rows> residues;
  int64_t rows = 0;
  for (int64_t ky = 0; ky < s.kernel_h; ++ky) {
    const int64_t y = ky * s.dilation_h, needed = y / s.stride_h + plan.out_height;
    Rows& r = residues.insert({y % s.stride_h, {static_cast<int64_t>(residues.size()), 0}}).first->second;
    r.needed = std::max(r.needed, needed);
    rows = std::max(rows, needed);
  }
  const int64_t plane_cells = rows * plan.out_width;
  plan.cell_plane = plane_cells * static_cast<int64_t>(residues.size());
  for (const auto& [residue, r] : residues) {
    for (int64_t i = 0; i < r.needed; ++i) {
      const size_t row = static_cast<size_t>(i * s.stride_h + residue);
      if (row >= plan.row_cells.size()) plan.row_cells.resize(row + 1, -1);
      plan.row_cells[row] = r.index * plane_cells + i * plan.out_width;
    }
  }
  for (int64_t kx = 0; kx < s.kernel_w; ++kx) {
    const int64_t at = kx * s.dilation_w - s.pad_left;
    const int64_t begin = at < 0 ? std::min(ceil_div(-at, s.stride_w), plan.out_width) : 0;
    const int64_t end = s.width <= at ? 0 : std::min((s.width - 1 - at) / s.stride_w + 1, plan.out_width);
    plan.columns.push_back({at, begin, std::max(begin, end)});
  }
  plan.tap_cells = plan.cell_plane * isa.cells_per_word;
  plan.word_cells = plan.tap_cells * s.kernel_w;
  plan.group_cells = plan.word_cells * words_of(s.group_channels());
  std::vector<int64_t> offsets;
  for (const Step& step : steps_of(s, isa)) {
    Plan::Join join{plan.group_cells, static_cast<int>(step.bits), {}};
    for (const Step::Tap& tap : step.taps) {
      join.taps.push_back(step.word * plan.word_cells + tap.column * plan.tap_cells + step.cell * plan.cell_plane +
                          plan.row_cells[static_cast<size_t>(tap.row * s.dilation_h)]);
    }
    const bool alone = step.taps.size() == 1;
    offsets.push_back(alone ? join.taps[0] : join.cell);
    if (alone) continue;
    plan.group_cells += plan.out_height * plan.out_width;
    plan.joins.push_back(std::move(join));
  }
  plan.image_cells = plan.group_cells * s.groups;
  if (plan.group_cells > std::numeric_limits<int32_t>::max()) {  // offsets stay within a group
    throw std::length_error("the image is too large");
  }
  for (const int64_t offset : offsets) plan.offsets.push_back(static_cast<int32_t>(offset));
  return plan;
}

}  // namespace bnas
