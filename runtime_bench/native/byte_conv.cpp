#include "byte_conv.h"

#include <algorithm>
#include <cfloat>
#include <cstdio>
#include <cstring>

#include "isa_bytes.h"
#include "reference.h"
#include "tasks.h"

namespace bnas {
namespace {

constexpr int64_t kMaxWeights = 512;       // of an output channel
constexpr int64_t kSlabBytes = 160 << 10;  // of cells, which stay in the second cache
constexpr int64_t kPositions = 960;        // computed for all channels in turn, while the first cache holds their cells

// What lies beside each other in a row of levels is read in cells: a kernel row at once, or, dilated, each of its taps.
// Kernel rows that are so many rows apart as the stride share their cells: they are a set. Dilated ones do not.
struct Layout {
  Layout(const ConvShape& s, int values)
      : runs(s.dilation_w == 1 ? 1 : s.kernel_w),
        run_bytes(s.kernel_w / runs * s.group_channels()),
        run_cells(ceil_div(run_bytes, values)),
        sets(s.dilation_h == 1 ? std::min(s.stride_h, s.kernel_h) : s.kernel_h),
        more_rows(s.dilation_h == 1 ? (s.kernel_h - 1) / s.stride_h : 0) {}

  int64_t runs, run_bytes, run_cells;
  int64_t sets, more_rows;  // rows of a set beyond one for each output row

  int64_t row_cells() const { return runs * run_cells; }
};

// Output rows are made in slabs, whose cells are packed together.
struct Slabs {
  Slabs(const ConvShape& s, const Layout& layout) {
    const int64_t row = s.groups * layout.sets * layout.row_cells() * s.out_width() * 4;
    const int64_t most = std::max<int64_t>(kSlabBytes / row - layout.more_rows, 1);
    count = ceil_div(s.out_height(), std::min(most, s.out_height()));
    rows = ceil_div(s.out_height(), count);
    count = ceil_div(s.out_height(), rows);
    set_rows = rows + layout.more_rows;
    set_cells = set_rows * s.out_width();
    group_cells = layout.sets * layout.row_cells() * set_cells;
  }

  int64_t rows, count;          // output rows of a slab; the last one may have fewer
  int64_t set_rows, set_cells;  // of one cell of a set
  int64_t group_cells;          // [sets, row_cells, set_rows, out_width]
};

// Kept by each thread, because fresh pages cost more than the convolution.
thread_local std::vector<uint32_t> cell_buffer;
thread_local std::vector<uint8_t> levels;

constexpr int64_t kLine = 64 / sizeof(uint32_t);

uint32_t* cells() {  // of this thread, where a line of the cache begins
  return reinterpret_cast<uint32_t*>((reinterpret_cast<uintptr_t>(cell_buffer.data()) + 63) / 64 * 64);
}

class Packing {
 public:
  Packing(const ByteIsa& isa, const ConvShape& s, const Layout& layout, const Slabs& slabs, const Levels& rounding)
      : isa_(isa), s_(s), layout_(layout), slabs_(slabs), rounding_(rounding) {
    // To the last byte that a window reads, also where the row ends before it.
    const int64_t windows = (s.out_width() - 1) * s.stride_w + s.dilation_w * (s.kernel_w - 1) + 1;
    row_bytes_ = std::max(windows, s.pad_left + s.width) * s.group_channels() + kLevelOverread;
  }

  void reserve() const {
    const size_t wanted = static_cast<size_t>(s_.groups * slabs_.group_cells + kCellOverread + kLine);
    if (cell_buffer.size() < wanted) cell_buffer.resize(wanted);
    if (levels.size() < static_cast<size_t>(row_bytes_)) levels.resize(static_cast<size_t>(row_bytes_));
  }

  // image: [channels, height, width]
  void slab(const float* image, int64_t slab) const {
    for (int64_t group = 0; group < s_.groups; ++group) {
      std::memset(levels.data(), rounding_.zero, static_cast<size_t>(row_bytes_));
      for (int64_t set = 0; set < layout_.sets; ++set) {
        for (int64_t row = 0; row < slabs_.set_rows; ++row) {
          const int64_t out_row = slab * slabs_.rows + row;
          uint32_t* target = cells() + group * slabs_.group_cells + set * layout_.row_cells() * slabs_.set_cells +
                             row * s_.out_width();
          pack_row(image + group * s_.group_channels() * s_.height * s_.width,
                   out_row * s_.stride_h - s_.pad_top + set * s_.dilation_h, target);
        }
      }
    }
  }

 private:
  void pack_row(const float* image, int64_t row, uint32_t* target) const {
    if (row < 0 || row >= s_.height) {
      const uint32_t pad = isa_.values == 4 ? static_cast<uint32_t>(rounding_.zero) * 0x01010101u : 0;
      for (int64_t j = 0; j < layout_.row_cells(); ++j) {
        std::fill_n(target + j * slabs_.set_cells, s_.out_width(), pad);
      }
      return;
    }
    const int64_t depth = s_.group_channels();
    isa_.quantize(image + row * s_.width, s_.height * s_.width, depth, s_.width, rounding_.scale, rounding_.zero,
                  levels.data() + s_.pad_left * depth);
    for (int64_t run = 0; run < layout_.runs; ++run) {
      for (int64_t j = 0; j < layout_.run_cells; ++j, target += slabs_.set_cells) {
        isa_.place(levels.data() + run * s_.dilation_w * depth + j * isa_.values, s_.stride_w * depth, s_.out_width(),
                   rounding_.zero, target);
      }
    }
  }

  const ByteIsa& isa_;
  const ConvShape& s_;
  const Layout& layout_;
  const Slabs& slabs_;
  const Levels& rounding_;
  int64_t row_bytes_;
};

// weights: of one output channel, int8 [depth, taps] where taps are those of the kernel.
uint32_t weight_cell(const int8_t* weights, const ConvShape& s, const Layout& layout, int values, int64_t ky,
                     int64_t cell) {
  const int64_t run = cell / layout.run_cells, depth = s.group_channels();
  uint32_t word = 0;
  for (int i = 0; i < values; ++i) {
    const int64_t byte = cell % layout.run_cells * values + i;
    if (byte >= layout.run_bytes) break;
    const int64_t kx = run + byte / depth, c = byte % depth;  // a run of several taps is the only one
    const int32_t weight = weights[(c * s.kernel_h + ky) * s.kernel_w + kx];
    const int bits = 32 / values;
    word |= (static_cast<uint32_t>(weight) & (bits == 8 ? 0xffu : 0xffffu)) << (i * bits);
  }
  return word;
}

}  // namespace

std::string check_bytes(const ConvShape& shape) {
  const std::string error = check(shape);
  if (!error.empty() || shape.fan_in() <= kMaxWeights) return error;
  return "more than " + std::to_string(kMaxWeights) + " weights per output channel";
}

std::string check(const Levels& levels, bool may_be_none) {
  if (may_be_none && levels.scale == 0) return {};
  if (levels.scale >= FLT_MIN && levels.scale <= FLT_MAX) return {};
  char text[96];
  std::snprintf(text, sizeof text, "is %g, expected a normal number above 0%s", static_cast<double>(levels.scale),
                may_be_none ? ", or 0 for none" : "");
  return text;
}

ByteConv::ByteConv(const ConvShape& shape, const int8_t* weights, const Path& path) : path_(path) {
  if (!path.isa) {
    given_.assign(weights, weights + shape.out_channels * shape.fan_in());
    return;
  }
  const ByteIsa& isa = *path.bytes;
  const Layout layout(shape, isa.values);
  const int64_t outputs = shape.group_outputs();
  for (int64_t o = 0; o < shape.out_channels; ++o) {
    int32_t sum = 0;
    for (int64_t k = 0; k < shape.fan_in(); ++k) sum += weights[o * shape.fan_in() + k];
    sums_.push_back(sum);
  }
  for (int64_t group = 0; group < shape.groups; ++group) {
    for (int64_t first = 0; first < outputs; first += isa.block) {
      for (int64_t ky = 0; ky < shape.kernel_h; ++ky) {
        for (int64_t cell = 0; cell < layout.row_cells(); ++cell) {
          for (int64_t o = first; o < first + isa.block; ++o) {
            const int8_t* channel = weights + (group * outputs + o) * shape.fan_in();
            weights_.push_back(o < outputs ? weight_cell(channel, shape, layout, isa.values, ky, cell) : 0);
          }
        }
      }
    }
  }
}

void ByteConv::run(const ConvShape& s, const float* x, const Levels& rounding, const ByteAffine& affine, float* y,
                   const Host& host) const {
  if (!path_.isa) return reference::byte_conv(s, given_.data(), x, rounding, affine, y);
  const ByteIsa& isa = *path_.bytes;
  const Layout layout(s, isa.values);
  const Slabs slabs(s, layout);
  const Packing packing(isa, s, layout, slabs, rounding);
  const int64_t out_width = s.out_width(), out_pixels = s.out_height() * out_width;

  std::vector<int64_t> offsets;
  for (int64_t ky = 0; ky < s.kernel_h; ++ky) {
    const int64_t set = s.dilation_h == 1 ? ky % s.stride_h : ky, rows = s.dilation_h == 1 ? ky / s.stride_h : 0;
    for (int64_t j = 0; j < layout.row_cells(); ++j) {
      offsets.push_back((set * layout.row_cells() + j) * slabs.set_cells + rows * out_width);
    }
  }
  const auto at = [](PerChannel p, int64_t channel) { return p.values[p.count == 1 ? 0 : channel]; };
  const auto neutral = [](PerChannel p, float value) { return p.count == 1 && p.values[0] == value; };
  std::vector<ByteFinish> finish;
  for (int64_t o = 0; o < s.out_channels; ++o) {
    const int32_t start = isa.values == 4 ? -rounding.zero * sums_[o] : 0;
    // A shift of 0, which is left out without an activation, would make -0 to 0. Only a bias of -0 can make -0.
    const float bias = at(affine.bias, o) + 0.0f;
    finish.push_back({start, at(affine.scale, o), bias, at(affine.slope, o), at(affine.shift_out, o)});
  }
  const Levels& out = affine.y;
  ByteEnd end{};
  end.rectify = !neutral(affine.slope, 1) || !neutral(affine.shift_out, 0);
  end.round = out.scale != 0;
  if (end.round) {
    end.inverse = 1.0f / out.scale, end.scale = out.scale;
    end.low = static_cast<float>(-out.zero), end.high = static_cast<float>(255 - out.zero);
  }

  const int64_t steps = static_cast<int64_t>(offsets.size()), outputs = s.group_outputs();
  const int64_t blocks = ceil_div(outputs, isa.block);
  run_tasks(host, s.batch * slabs.count, [&](int64_t task) {
    const int64_t image = task / slabs.count, slab = task % slabs.count;
    packing.reserve();
    packing.slab(x + image * s.channels * s.height * s.width, slab);
    const int64_t begin = slab * slabs.rows * out_width;
    const int64_t positions = std::min(slabs.rows * out_width, out_pixels - begin);
    for (int64_t group = 0; group < s.groups; ++group) {
      for (int64_t first = 0; first < positions; first += kPositions) {
        for (int64_t block = 0; block < blocks; ++block) {
          const int64_t o = group * outputs + block * isa.block;
          const int n = static_cast<int>(std::min<int64_t>(isa.block, outputs - block * isa.block));
          const ByteJob job{cells() + group * slabs.group_cells + first, offsets.data(),
                            weights_.data() + (group * blocks + block) * steps * isa.block, steps};
          isa.unit(job, finish.data() + o, n, end, std::min(kPositions, positions - first),
                   y + (image * s.out_channels + o) * out_pixels + begin + first, out_pixels);
        }
      }
    }
  });
}

}  // namespace bnas
