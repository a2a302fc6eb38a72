#include "nhwc.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <new>
#include <stdexcept>

namespace bnas {
namespace {

constexpr int64_t kTaskMacs = int64_t{16} << 20;  // binary MACs worth handing over to another thread
constexpr int64_t kTaskWords = 4096;              // words to pack, likewise
constexpr int64_t kCountsSlack = 64;              // `count` may write that far past a strip
constexpr int64_t kLaneStep = 16;                 // lanes are filled up to a multiple of it

template <typename Task>
void run_tasks(const Host& host, int64_t tasks, const Task& task) {
  if (tasks <= 1 || !host.run) {
    for (int64_t i = 0; i < tasks; ++i) task(i);
    return;
  }
  host.run(
      host.host, static_cast<size_t>(tasks),
      [](void* job, size_t index) { (*static_cast<const Task*>(job))(static_cast<int64_t>(index)); },
      const_cast<void*>(static_cast<const void*>(&task)));
}

// Cuts `count` things into tasks of about `each`: task(begin, end).
template <typename Task>
void run_ranges(const Host& host, int64_t count, int64_t each, const Task& task) {
  each = std::max<int64_t>(each, 1);
  run_tasks(host, ceil_div(count, each), [&](int64_t i) { task(i * each, std::min(count, (i + 1) * each)); });
}

// Packed images and gathered pixels. Kept by each thread, because fresh pages cost more than the convolution.
thread_local std::vector<uint32_t> packed_image;
thread_local std::vector<uint32_t> gathered;

int popcount(uint32_t word) { return __builtin_popcount(word); }

uint32_t signs(const float* values, const float* shift, int64_t n) {
  uint32_t word = 0;
  for (int64_t i = 0; i < n; ++i) word |= static_cast<uint32_t>(values[i] < (shift ? shift[i] : 0.0f)) << i;
  return word;
}

}  // namespace

// Where the packed image lies: [batch, rows, cells of all words, columns], pads included. A cell is what the path
// broadcasts; several make up a word on some paths. One step of counting reads, for each pixel, the cell at `offsets`
// from where that pixel's window begins.
struct NhwcConv::Plan {
  int64_t rows, columns, cells;  // cells of all groups
  int64_t out_height, out_width, positions;
  std::vector<int32_t> offsets;  // [steps], in cells
  // Rows of the output with the same kernel rows outside of the image are of one class, likewise columns.
  std::vector<int32_t> row_class, column_class;
  int64_t column_classes;
  std::vector<int32_t> pad_sums;  // [row classes, column classes, groups, lanes]: what pads of 0 take from dot products

  int64_t row_cells() const { return cells * columns; }
  int64_t begin(const ConvShape& shape, int64_t position) const {
    const int64_t column = position % out_width, row = position / out_width % out_height;
    const int64_t image = position / out_width / out_height;
    return (image * rows + row * shape.stride_h) * row_cells() + column * shape.stride_w;
  }
  int64_t pad_class(int64_t position) const {
    return row_class[static_cast<size_t>(position / out_width % out_height)] * column_classes +
           column_class[static_cast<size_t>(position % out_width)];
  }
};

NhwcConv::NhwcConv(const ConvShape& shape, const uint32_t* words, bool zero_pads, const Path& path)
    : shape_(shape),
      zero_pads_(zero_pads),
      path_(path),
      words_(words_of(shape.group_channels())),
      lanes_(ceil_div(shape.group_outputs(), kLaneStep) * kLaneStep) {
  const int64_t taps = shape.kernel_h * shape.kernel_w, outputs = shape.group_outputs();
  const int64_t cells = path.isa ? path.isa->cells_per_word : 1, bytes = path.isa ? path.isa->cell_bytes : 4;
  const int64_t step_bytes = lanes_ * bytes;
  weights_.resize(static_cast<size_t>(shape.groups * taps * words_ * cells * step_bytes + kOverread * bytes));
  std::vector<uint32_t> lane(static_cast<size_t>(outputs));
  uint8_t* target = weights_.data();
  for (int64_t group = 0; group < shape.groups; ++group) {
    for (int64_t tap_word = 0; tap_word < taps * words_; ++tap_word, target += cells * step_bytes) {
      for (int64_t o = 0; o < outputs; ++o) {
        lane[static_cast<size_t>(o)] = words[(group * outputs + o) * taps * words_ + tap_word];
      }
      if (path.isa) {
        path.isa->place(lane.data(), 1, outputs, target, lanes_);
      } else {
        std::memcpy(target, lane.data(), lane.size() * sizeof(uint32_t));
      }
    }
  }
  if (!zero_pads) return;
  for (int64_t tap = 0; tap < shape.out_channels * taps; ++tap) {
    int64_t negative = 0;
    for (int64_t word = 0; word < words_; ++word) negative += popcount(words[tap * words_ + word]);
    tap_sums_.push_back(static_cast<int32_t>(shape.group_channels() - 2 * negative));
  }
}

NhwcConv::~NhwcConv() = default;

void NhwcConv::plan_for(const ConvShape& s) {
  const bool same = plan_ && s.batch == shape_.batch && s.height == shape_.height && s.width == shape_.width &&
                    s.pad_top == shape_.pad_top && s.pad_left == shape_.pad_left &&
                    s.pad_bottom == shape_.pad_bottom && s.pad_right == shape_.pad_right;
  if (same) return;
  plan_.reset();
  shape_ = s;
  auto plan = std::make_unique<Plan>();
  const int64_t cells = path_.isa ? path_.isa->cells_per_word : 1;
  plan->rows = s.height + s.pad_top + s.pad_bottom;
  plan->columns = s.width + s.pad_left + s.pad_right;
  plan->cells = s.groups * words_ * cells;
  plan->out_height = s.out_height();
  plan->out_width = s.out_width();
  plan->positions = s.batch * plan->out_height * plan->out_width;
  const int64_t row_cells = plan->row_cells();
  if (row_cells > std::numeric_limits<int32_t>::max() / plan->rows ||
      s.batch > std::numeric_limits<int32_t>::max() / (plan->rows * row_cells)) {
    throw std::length_error("the image is too large");
  }
  for (int64_t ky = 0; ky < s.kernel_h; ++ky) {
    for (int64_t kx = 0; kx < s.kernel_w; ++kx) {
      for (int64_t cell = 0; cell < words_ * cells; ++cell) {
        plan->offsets.push_back(static_cast<int32_t>(ky * s.dilation_h * row_cells + cell * plan->columns +
                                                     kx * s.dilation_w));
      }
    }
  }
  // Which kernel rows (or columns) lie outside of the image, for each output row; equal lists are one class.
  const auto classes = [](int64_t outputs, int64_t stride, int64_t pad, int64_t kernel, int64_t dilation, int64_t size,
                          std::vector<int32_t>* of) {
    std::map<std::vector<bool>, int32_t> found;
    for (int64_t i = 0; i < outputs; ++i) {
      std::vector<bool> outside;
      for (int64_t k = 0; k < kernel; ++k) {
        const int64_t at = i * stride + k * dilation - pad;
        outside.push_back(at < 0 || at >= size);
      }
      of->push_back(found.insert({outside, static_cast<int32_t>(found.size())}).first->second);
    }
    std::vector<std::vector<bool>> lists(found.size());
    for (const auto& [outside, index] : found) lists[static_cast<size_t>(index)] = outside;
    return lists;
  };
  if (!zero_pads_) {
    plan->row_class.assign(static_cast<size_t>(plan->out_height), 0);
    plan->column_class.assign(static_cast<size_t>(plan->out_width), 0);
    plan->column_classes = 1;
    plan->pad_sums.assign(static_cast<size_t>(s.groups * lanes_), 0);
  } else {
    const auto rows = classes(plan->out_height, s.stride_h, s.pad_top, s.kernel_h, s.dilation_h, s.height,
                              &plan->row_class);
    const auto columns = classes(plan->out_width, s.stride_w, s.pad_left, s.kernel_w, s.dilation_w, s.width,
                                 &plan->column_class);
    plan->column_classes = static_cast<int64_t>(columns.size());
    for (const std::vector<bool>& row : rows) {
      for (const std::vector<bool>& column : columns) {
        for (int64_t lane = 0; lane < s.groups * lanes_; ++lane) {
          const int64_t in_group = lane % lanes_, o = lane / lanes_ * s.group_outputs() + in_group;
          int32_t sum = 0;
          for (size_t ky = 0; in_group < s.group_outputs() && ky < row.size(); ++ky) {
            for (size_t kx = 0; kx < column.size(); ++kx) {
              if (row[ky] || column[kx]) sum += tap_sums_[(static_cast<size_t>(o) * row.size() + ky) * column.size() + kx];
            }
          }
          plan->pad_sums.push_back(sum);
        }
      }
    }
  }
  plan_ = std::move(plan);
}

void NhwcConv::pack(const NhwcImage& x, const Host& host) const {
  const ConvShape& s = shape_;
  const Plan& plan = *plan_;
  const size_t needed = static_cast<size_t>(s.batch * plan.rows * plan.row_cells() + kOverread);
  if (packed_image.size() < needed) packed_image.resize(needed);
  uint32_t* image = packed_image.data();
  const int64_t words = s.groups * words_, cells = plan.cells / words, columns = plan.columns;
  run_ranges(host, s.batch * plan.rows, kTaskWords / plan.row_cells(), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      uint32_t* row = image + i * plan.row_cells();
      const int64_t y = i % plan.rows - s.pad_top;
      const bool inside = y >= 0 && y < s.height;
      const auto fill = [&](uint32_t* target, int64_t n) {
        // A word of no negative signs; its cells need not be 0.
        for (int64_t cell = 0; cell < plan.cells; ++cell) {
          const uint32_t none = path_.isa ? path_.isa->weight_cell(0, static_cast<int>(cell % cells)) : 0;
          std::fill_n(target + cell * columns, n, none);
        }
      };
      if (!inside) {
        fill(row, columns);
        continue;
      }
      fill(row, s.pad_left);
      fill(row + s.pad_left + s.width, s.pad_right);
      const int64_t first = (i / plan.rows * s.height + y) * s.width;
      for (int64_t column = 0; column < s.width; ++column) {
        const int64_t pixel = first + column;
        for (int64_t word = 0; word < words; ++word) {
          const int64_t channel = word * kWordBits, n = std::min(kWordBits, s.channels - channel);
          const uint32_t bits = x.bits ? x.bits[pixel * words + word]
                                       : signs(x.values + pixel * s.channels + channel,
                                               x.shift ? x.shift + channel : nullptr, n);
          uint32_t* target = row + word * cells * columns + s.pad_left + column;
          if (cells == 1) {
            *target = path_.isa ? path_.isa->weight_cell(bits, 0) : bits;
          } else {
            for (int64_t c = 0; c < cells; ++c) target[c * columns] = path_.isa->weight_cell(bits, static_cast<int>(c));
          }
        }
      }
    }
  });
}

// use(position, group, first, n, counts): counts of n output channels of a group, from its `first` on, at one position.
// counts may be changed.
template <typename Use>
void NhwcConv::count(const Host& host, const Use& use) const {
  const ConvShape& s = shape_;
  const Plan& plan = *plan_;
  const int64_t steps = static_cast<int64_t>(plan.offsets.size()), outputs = s.group_outputs();
  const uint32_t* image = packed_image.data();  // of this thread, for all of them
  const int64_t group_cells = plan.cells / s.groups * plan.columns;
  const int64_t each = kTaskMacs / std::max<int64_t>(1, s.fan_in() * s.out_channels);
  if (!path_.isa) {
    const uint32_t* weights = reinterpret_cast<const uint32_t*>(weights_.data());
    std::vector<int32_t> counts(static_cast<size_t>(outputs));
    for (int64_t position = 0; position < plan.positions; ++position) {
      for (int64_t group = 0; group < s.groups; ++group) {
        const uint32_t* pixel = image + plan.begin(s, position) + group * group_cells;
        for (int64_t o = 0; o < outputs; ++o) {
          int32_t sum = 0;
          for (int64_t step = 0; step < steps; ++step) {
            sum += popcount(pixel[plan.offsets[static_cast<size_t>(step)]] ^
                            weights[(group * steps + step) * lanes_ + o]);
          }
          counts[static_cast<size_t>(o)] = sum;
        }
        use(position, group, 0, outputs, counts.data());
      }
    }
    return;
  }
  const Isa& isa = *path_.isa;
  std::vector<int32_t> offsets;  // of the steps' weights
  for (int64_t step = 0; step < steps; ++step) offsets.push_back(static_cast<int32_t>(step * lanes_));
  std::atomic<bool> no_room{false};
  run_ranges(host, plan.positions, ceil_div(each, isa.block) * isa.block, [&](int64_t begin, int64_t end) {
    try {
      gathered.resize(std::max(gathered.size(), static_cast<size_t>(steps * isa.block)));
    } catch (const std::bad_alloc&) {  // not through the host's threads
      no_room = true;
      return;
    }
    alignas(64) int32_t counts[kMaxBlock * (512 + kCountsSlack)];
    const int64_t stride = isa.strip + kCountsSlack;
    for (int64_t position = begin; position < end; position += isa.block) {
      const int n = static_cast<int>(std::min<int64_t>(isa.block, end - position));
      for (int64_t group = 0; group < s.groups; ++group) {
        const uint32_t* source[kMaxBlock];
        for (int i = 0; i < isa.block; ++i) {
          source[i] = image + plan.begin(s, position + std::min(i, n - 1)) + group * group_cells;
        }
        uint32_t* pixels = gathered.data();
        if (source[n - 1] - source[0] == n - 1) {  // neighbours; those behind them are read, but not used
          for (const int32_t offset : plan.offsets) {
            std::memcpy(pixels, source[0] + offset, static_cast<size_t>(isa.block) * sizeof(uint32_t));
            pixels += isa.block;
          }
        } else {
          for (const int32_t offset : plan.offsets) {
            for (int i = 0; i < isa.block; ++i) *pixels++ = source[i][offset];
          }
        }
        Counting job;
        job.cells = weights_.data() + group * steps * lanes_ * isa.cell_bytes;
        job.offsets = offsets.data();
        job.weights = gathered.data();
        job.steps = steps;
        for (int64_t first = 0; first < outputs; first += isa.strip) {
          const int64_t channels = std::min(isa.strip, outputs - first);
          isa.count(job, first, channels, n, counts, stride);
          for (int i = 0; i < n; ++i) {
            int32_t* of_pixel = counts + i * stride;
            if (isa.count_base) {
              for (int64_t c = 0; c < channels; ++c) of_pixel[c] -= isa.count_base;
            }
            use(position + i, group, first, channels, of_pixel);
          }
        }
      }
    }
  });
  if (no_room) throw std::bad_alloc();
}

void NhwcConv::run(const ConvShape& shape, const NhwcImage& x, const NhwcAffine& affine, float* y, const Host& host) {
  plan_for(shape);
  pack(x, host);
  const int32_t fan_in = static_cast<int32_t>(shape.fan_in());
  count(host, [&](int64_t position, int64_t group, int64_t first, int64_t n, const int32_t* counts) {
    const int64_t channel = group * shape.group_outputs() + first, at = position * shape.out_channels + channel;
    const int32_t* pads =
        plan_->pad_sums.data() + (plan_->pad_class(position) * shape.groups + group) * lanes_ + first;
    const float *scale = affine.scale + channel, *bias = affine.bias + channel;
    const float* residual = affine.residual ? affine.residual + at : nullptr;
    const float* shift_in = affine.shift_in ? affine.shift_in + channel : nullptr;
    const float* slope = affine.slope ? affine.slope + channel : nullptr;
    const float* shift_out = affine.shift_out ? affine.shift_out + channel : nullptr;
    float* target = y + at;
    for (int64_t c = 0; c < n; ++c) {
      const float dot = static_cast<float>(fan_in - 2 * counts[c] - pads[c]);
      target[c] = std::min(std::max(dot, affine.low), affine.high) * scale[c] + bias[c];
    }
    if (residual) {
      for (int64_t c = 0; c < n; ++c) target[c] += residual[c];
    }
    if (shift_in) {
      for (int64_t c = 0; c < n; ++c) target[c] -= shift_in[c];
    }
    if (slope) {
      for (int64_t c = 0; c < n; ++c) target[c] = target[c] < 0 ? target[c] * slope[c] : target[c];
    }
    if (shift_out) {
      for (int64_t c = 0; c < n; ++c) target[c] += shift_out[c];
    }
  });
}

void NhwcConv::run_int8(const ConvShape& shape, const NhwcImage& x, const NhwcInt8& q, int8_t* y, const Host& host) {
  plan_for(shape);
  pack(x, host);
  const int32_t fan_in = static_cast<int32_t>(shape.fan_in());
  count(host, [&](int64_t position, int64_t group, int64_t first, int64_t n, const int32_t* counts) {
    const int64_t channel = group * shape.group_outputs() + first;
    const int32_t* pads =
        plan_->pad_sums.data() + (plan_->pad_class(position) * shape.groups + group) * lanes_ + first;
    int8_t* target = y + position * shape.out_channels + channel;
    for (int64_t c = 0; c < n; ++c) {
      const int32_t dot = fan_in - 2 * counts[c] - pads[c];
      const float v = static_cast<float>(fan_in - std::min(std::max(dot, q.low), q.high)) * q.scale[channel + c];
      const float rounded = std::round(v + q.bias[channel + c]);
      target[c] = static_cast<int8_t>(rounded > -128.0f ? std::min(rounded, 127.0f) : -128.0f);
    }
  });
}

void NhwcConv::run_bits(const ConvShape& shape, const NhwcImage& x, const int32_t* limits, uint32_t* y,
                        const Host& host) {
  plan_for(shape);
  pack(x, host);
  const int64_t words = words_of(shape.out_channels);
  // Where channels of two groups share a word, the first one clears it.
  count(host, [&](int64_t position, int64_t group, int64_t first, int64_t n, const int32_t* counts) {
    const int64_t channel = group * shape.group_outputs() + first;
    const int32_t* pads =
        plan_->pad_sums.data() + (plan_->pad_class(position) * shape.groups + group) * lanes_ + first;
    uint32_t* target = y + position * words;
    for (int64_t c = 0; c < n; ++c) {
      const int64_t o = channel + c;
      uint32_t& word = target[o / kWordBits];
      if (o % kWordBits == 0) word = 0;
      const int64_t twice = 2 * static_cast<int64_t>(counts[c]) + pads[c];
      word |= static_cast<uint32_t>(twice > 2 * static_cast<int64_t>(limits[o])) << (o % kWordBits);
    }
  });
}

void nhwc_pack(int64_t rows, int64_t channels, const float* values, uint32_t* bits, const Host& host) {
  const int64_t words = words_of(channels);
  run_ranges(host, rows, kTaskWords / words, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t word = 0; word < words; ++word) {
        const int64_t first = word * kWordBits;
        bits[row * words + word] =
            signs(values + row * channels + first, nullptr, std::min(kWordBits, channels - first));
      }
    }
  });
}

void nhwc_pack(int64_t rows, int64_t channels, const int8_t* values, int limit, uint32_t* bits, const Host& host) {
  const int64_t words = words_of(channels);
  run_ranges(host, rows, kTaskWords / words, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      std::fill_n(bits + row * words, words, 0u);
      for (int64_t c = 0; c < channels; ++c) {
        const bool minus = values[row * channels + c] < limit;
        bits[row * words + c / kWordBits] |= static_cast<uint32_t>(minus) << (c % kWordBits);
      }
    }
  });
}

void nhwc_max_pool(const PoolShape& s, const uint32_t* x, uint32_t* y, const Host& host) {
  const int64_t out_h = s.out_height(), out_w = s.out_width();
  run_ranges(host, s.batch * out_h, kTaskWords / (out_w * s.words), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const uint32_t* image = x + i / out_h * s.height * s.width * s.words;
      const int64_t top = i % out_h * s.stride_h - s.pad_top;
      const int64_t y0 = std::max<int64_t>(top, 0), y1 = std::min(top + s.kernel_h, s.height);
      for (int64_t column = 0; column < out_w; ++column) {
        const int64_t left = column * s.stride_w - s.pad_left;
        const int64_t x0 = std::max<int64_t>(left, 0), x1 = std::min(left + s.kernel_w, s.width);
        uint32_t* target = y + (i * out_w + column) * s.words;
        std::fill_n(target, s.words, ~0u);
        for (int64_t iy = y0; iy < y1; ++iy) {
          for (int64_t ix = x0; ix < x1; ++ix) {
            const uint32_t* pixel = image + (iy * s.width + ix) * s.words;
            for (int64_t word = 0; word < s.words; ++word) target[word] &= pixel[word];
          }
        }
      }
    }
  });
}

}  // namespace bnas
