#include "nhwc.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <stdexcept>

#if defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include "isa_nhwc.h"
#include "tasks.h"

namespace bnas {
namespace {

constexpr int64_t kTaskMacs = int64_t{16} << 20;  // binary MACs worth handing over to another thread
constexpr int64_t kTaskWords = 4096;              // words to pack, likewise
constexpr int64_t kCountsSlack = 64;              // `count` may write that far past a strip
constexpr int64_t kLaneStep = 16;                 // lanes are filled up to a multiple of it

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

// The signs of up to 32 values; with what every processor of the architecture has.
uint32_t signs(const float* values, const float* shift, int64_t n) {
  uint32_t word = 0;
  int64_t i = 0;
#if defined(__SSE2__)
  for (; i + 4 <= n; i += 4) {
    const __m128 limit = shift ? _mm_loadu_ps(shift + i) : _mm_setzero_ps();
    word |= static_cast<uint32_t>(_mm_movemask_ps(_mm_cmplt_ps(_mm_loadu_ps(values + i), limit))) << i;
  }
#elif defined(__ARM_NEON)
  const uint32_t low[4] = {1, 2, 4, 8}, high[4] = {16, 32, 64, 128};
  const uint32x4_t low_bits = vld1q_u32(low), high_bits = vld1q_u32(high);
  for (; i + 8 <= n; i += 8) {
    const float32x4_t a = shift ? vld1q_f32(shift + i) : vdupq_n_f32(0);
    const float32x4_t b = shift ? vld1q_f32(shift + i + 4) : vdupq_n_f32(0);
    const uint32x4_t minus_a = vandq_u32(vcltq_f32(vld1q_f32(values + i), a), low_bits);
    const uint32x4_t minus_b = vandq_u32(vcltq_f32(vld1q_f32(values + i + 4), b), high_bits);
    word |= vaddvq_u32(vorrq_u32(minus_a, minus_b)) << i;
  }
#endif
  for (; i < n; ++i) word |= static_cast<uint32_t>(values[i] < (shift ? shift[i] : 0.0f)) << i;
  return word;
}

// NhwcIsa::pack for all others.
void pack_pixels(const float* values, const float* shift, int64_t channels, int64_t pixels, uint32_t* words) {
  for (int64_t pixel = 0; pixel < pixels; ++pixel, values += channels) {
    for (int64_t c = 0; c < channels; c += kWordBits) {
      *words++ = signs(values + c, shift ? shift + c : nullptr, std::min(kWordBits, channels - c));
    }
  }
}

// `n` channels of one position; everything begins at the first of them. Loops of one kind each, which compilers turn
// into vectors.
void finish(int32_t fan_in, const int32_t* __restrict counts, const int32_t* __restrict pads, const NhwcAffine& affine,
            int64_t n, float* __restrict y) {
  const float* __restrict scale = affine.scale, * __restrict bias = affine.bias, * __restrict residual = affine.residual;
  const float* __restrict shift_in = affine.shift_in, * __restrict slope = affine.slope;
  const float* __restrict shift_out = affine.shift_out;
  const float low = affine.low, high = affine.high;
  for (int64_t c = 0; c < n; ++c) {
    const float dot = static_cast<float>(fan_in - 2 * counts[c] - pads[c]);
    const float raised = dot < low ? low : dot;
    y[c] = (raised > high ? high : raised) * scale[c] + bias[c];
  }
  if (residual) {
    for (int64_t c = 0; c < n; ++c) y[c] += residual[c];
  }
  if (shift_in) {
    for (int64_t c = 0; c < n; ++c) y[c] -= shift_in[c];
  }
  if (slope) {
    for (int64_t c = 0; c < n; ++c) {
      const float value = y[c], scaled = value * slope[c];
      y[c] = value < 0 ? scaled : value;
    }
  }
  if (shift_out) {
    for (int64_t c = 0; c < n; ++c) y[c] += shift_out[c];
  }
}

auto packing_of(const Path& path) { return path.nhwc ? path.nhwc->pack : pack_pixels; }

}  // namespace

// Where the packed image lies, pads included. One step of counting reads, for each output pixel, the cell at `offsets`
// from where that pixel's window begins. A cell is what the path broadcasts, a word or a part of one. A path with loops
// of its own reads single cells, so the image is [batch, rows, columns, cells]; the others gather those of some
// neighbouring pixels, so there it is [batch, rows, cells, columns].
struct NhwcConv::Plan {
  int64_t rows, columns, cells;  // cells of all groups
  int64_t pixel_step, cell_step;
  int64_t out_height, out_width, positions;
  std::vector<int32_t> offsets;  // [steps]
  std::vector<int32_t> begins;   // [positions]
  // Output pixels with the same part of the kernel outside of the image are of one class.
  std::vector<int32_t> classes;   // [positions], empty if pads are +1
  std::vector<int32_t> pad_sums;  // [classes, groups, lanes]: what pads of 0 take from the dot products

  int64_t row_cells() const { return cells * columns; }
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
                    s.pad_top == shape_.pad_top && s.pad_left == shape_.pad_left && s.pad_bottom == shape_.pad_bottom &&
                    s.pad_right == shape_.pad_right;
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
  plan->pixel_step = path_.nhwc ? plan->cells : 1;
  plan->cell_step = path_.nhwc ? 1 : plan->columns;
  const int64_t row_cells = plan->row_cells();
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() - kOverread;
  if (row_cells > kMost / plan->rows || s.batch > kMost / (plan->rows * row_cells) || plan->positions > kMost) {
    throw std::length_error("the image is too large");
  }
  for (int64_t ky = 0; ky < s.kernel_h; ++ky) {
    for (int64_t kx = 0; kx < s.kernel_w; ++kx) {
      for (int64_t cell = 0; cell < words_ * cells; ++cell) {
        plan->offsets.push_back(static_cast<int32_t>(ky * s.dilation_h * row_cells +
                                                     kx * s.dilation_w * plan->pixel_step + cell * plan->cell_step));
      }
    }
  }
  for (int64_t row = 0; row < s.batch * plan->out_height; ++row) {
    const int64_t first = (row / plan->out_height * plan->rows + row % plan->out_height * s.stride_h) * row_cells;
    for (int64_t column = 0; column < plan->out_width; ++column) {
      plan->begins.push_back(static_cast<int32_t>(first + column * s.stride_w * plan->pixel_step));
    }
  }
  if (zero_pads_) {
    add_classes(plan.get());
  } else {
    plan->pad_sums.assign(static_cast<size_t>(s.groups * lanes_), 0);
  }
  plan_ = std::move(plan);
}

void NhwcConv::add_classes(Plan* plan) const {
  const ConvShape& s = shape_;
  // For each output row (or column), the number of the list that says which kernel rows lie outside of the image.
  using Lists = std::map<std::vector<bool>, int64_t>;
  const auto number = [](int64_t outputs, int64_t stride, int64_t pad, int64_t kernel, int64_t dilation, int64_t size,
                         Lists* lists) {
    std::vector<int64_t> numbers;
    for (int64_t i = 0; i < outputs; ++i) {
      std::vector<bool> outside;
      for (int64_t k = 0; k < kernel; ++k) {
        const int64_t at = i * stride + k * dilation - pad;
        outside.push_back(at < 0 || at >= size);
      }
      numbers.push_back(lists->insert({outside, static_cast<int64_t>(lists->size())}).first->second);
    }
    return numbers;
  };
  Lists row_lists, column_lists;
  const std::vector<int64_t> rows =
      number(plan->out_height, s.stride_h, s.pad_top, s.kernel_h, s.dilation_h, s.height, &row_lists);
  const std::vector<int64_t> columns =
      number(plan->out_width, s.stride_w, s.pad_left, s.kernel_w, s.dilation_w, s.width, &column_lists);
  for (int64_t position = 0; position < plan->positions; ++position) {
    const int64_t row = position / plan->out_width % plan->out_height, column = position % plan->out_width;
    plan->classes.push_back(
        static_cast<int32_t>(rows[static_cast<size_t>(row)] * static_cast<int64_t>(column_lists.size()) +
                             columns[static_cast<size_t>(column)]));
  }
  const int64_t lanes = s.groups * lanes_;
  plan->pad_sums.assign(row_lists.size() * column_lists.size() * static_cast<size_t>(lanes), 0);
  for (const auto& [row, row_number] : row_lists) {
    for (const auto& [column, column_number] : column_lists) {
      int32_t* sums =
          plan->pad_sums.data() + (row_number * static_cast<int64_t>(column_lists.size()) + column_number) * lanes;
      for (int64_t o = 0; o < s.out_channels; ++o) {
        int32_t sum = 0;
        for (int64_t tap = 0; tap < s.kernel_h * s.kernel_w; ++tap) {
          const bool outside =
              row[static_cast<size_t>(tap / s.kernel_w)] || column[static_cast<size_t>(tap % s.kernel_w)];
          if (outside) sum += tap_sums_[static_cast<size_t>(o * s.kernel_h * s.kernel_w + tap)];
        }
        sums[o / s.group_outputs() * lanes_ + o % s.group_outputs()] = sum;
      }
    }
  }
}

const int32_t* NhwcConv::pads_of(int64_t position, int64_t group) const {
  const int64_t number = plan_->classes.empty() ? 0 : plan_->classes[static_cast<size_t>(position)];
  return plan_->pad_sums.data() + (number * shape_.groups + group) * lanes_;
}

void NhwcConv::pack(const NhwcImage& x, const Host& host) const {
  const ConvShape& s = shape_;
  const Plan& plan = *plan_;
  const size_t needed = static_cast<size_t>(s.batch * plan.rows * plan.row_cells() + kOverread);
  if (packed_image.size() < needed) packed_image.resize(needed);
  uint32_t* image = packed_image.data();
  const int64_t words = s.groups * words_, cells = plan.cells / words;
  const auto weight_cell = path_.isa ? path_.isa->weight_cell : [](uint32_t word, int) { return word; };
  // Pixels [column, column + n) of a row: from words, or of pads where there are none.
  const auto place = [&](uint32_t* row, int64_t column, int64_t n, const uint32_t* from) {
    for (int64_t word = 0; word < words; ++word) {
      for (int64_t cell = 0; cell < cells; ++cell) {
        uint32_t* target = row + (word * cells + cell) * plan.cell_step + column * plan.pixel_step;
        for (int64_t i = 0; i < n; ++i) {
          target[i * plan.pixel_step] = weight_cell(from ? from[i * words + word] : 0, static_cast<int>(cell));
        }
      }
    }
  };
  run_ranges(host, s.batch * plan.rows, kTaskWords / plan.row_cells(), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      uint32_t* row = image + i * plan.row_cells();
      const int64_t y = i % plan.rows - s.pad_top;
      if (y < 0 || y >= s.height) {
        place(row, 0, plan.columns, nullptr);
        continue;
      }
      place(row, 0, s.pad_left, nullptr);
      place(row, s.pad_left + s.width, s.pad_right, nullptr);
      const int64_t pixel = (i / plan.rows * s.height + y) * s.width;
      uint32_t* inside = row + s.pad_left * plan.pixel_step;
      if (path_.nhwc && x.bits) {
        std::memcpy(inside, x.bits + pixel * words, static_cast<size_t>(s.width * words) * sizeof(uint32_t));
      } else if (path_.nhwc) {
        path_.nhwc->pack(x.values + pixel * s.channels, x.shift, s.channels, s.width, inside);
      } else if (x.bits) {
        place(row, s.pad_left, s.width, x.bits + pixel * words);
      } else {
        if (gathered.size() < static_cast<size_t>(s.width * words))
          gathered.resize(static_cast<size_t>(s.width * words));
        pack_pixels(x.values + pixel * s.channels, x.shift, s.channels, s.width, gathered.data());
        place(row, s.pad_left, s.width, gathered.data());
      }
    }
  });
}

// run(job, group, begin, end) on a path with loops of its own: positions [begin, end) of a group.
template <typename Run>
void NhwcConv::on_path(const Host& host, const Run& run) const {
  const ConvShape& s = shape_;
  const Plan& plan = *plan_;
  const uint32_t* image = packed_image.data();  // of this thread, for all of them
  const int64_t steps = static_cast<int64_t>(plan.offsets.size());
  run_ranges(host, plan.positions, kTaskMacs / std::max<int64_t>(1, s.fan_in() * s.out_channels),
             [&](int64_t begin, int64_t end) {
               for (int64_t group = 0; group < s.groups; ++group) {
                 NhwcCounting job;
                 job.image = image + group * words_;
                 job.begins = plan.begins.data();
                 job.offsets = plan.offsets.data();
                 job.weights = reinterpret_cast<const uint32_t*>(weights_.data()) + group * steps * lanes_;
                 job.steps = steps;
                 job.lanes = lanes_;
                 job.outputs = s.group_outputs();
                 job.pad_sums = plan.pad_sums.data() + group * lanes_;
                 job.classes = plan.classes.empty() ? nullptr : plan.classes.data();
                 job.pad_step = s.groups * lanes_;
                 job.fan_in = static_cast<float>(s.fan_in());
                 run(job, group * s.group_outputs(), begin, end);
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
  const int64_t group_cells = plan.cells / s.groups * plan.cell_step;
  const int64_t each = kTaskMacs / std::max<int64_t>(1, s.fan_in() * s.out_channels);
  if (!path_.isa) {
    const uint32_t* weights = reinterpret_cast<const uint32_t*>(weights_.data());
    std::vector<int32_t> counts(static_cast<size_t>(outputs));
    for (int64_t position = 0; position < plan.positions; ++position) {
      for (int64_t group = 0; group < s.groups; ++group) {
        const uint32_t* pixel = image + plan.begins[static_cast<size_t>(position)] + group * group_cells;
        for (int64_t o = 0; o < outputs; ++o) {
          int32_t sum = 0;
          for (int64_t step = 0; step < steps; ++step) {
            sum +=
                popcount(pixel[plan.offsets[static_cast<size_t>(step)]] ^ weights[(group * steps + step) * lanes_ + o]);
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
  run_ranges(host, plan.positions, ceil_div(each, isa.block) * isa.block, [&](int64_t begin, int64_t end) {
    const size_t pixels_size = static_cast<size_t>(steps * isa.block);
    if (gathered.size() < pixels_size) gathered.resize(pixels_size);
    alignas(64) int32_t counts[kMaxBlock * (512 + kCountsSlack)];
    const int64_t stride = isa.strip + kCountsSlack;
    for (int64_t position = begin; position < end; position += isa.block) {
      const int n = static_cast<int>(std::min<int64_t>(isa.block, end - position));
      for (int64_t group = 0; group < s.groups; ++group) {
        const uint32_t* source[kMaxBlock];
        for (int i = 0; i < isa.block; ++i) {
          source[i] = image + plan.begins[static_cast<size_t>(position + std::min(i, n - 1))] + group * group_cells;
        }
        uint32_t* pixels = gathered.data();
        const bool neighbours = source[n - 1] - source[0] == n - 1;  // those behind them are read, but not used
        if (neighbours && isa.block == 8) {
          for (const int32_t offset : plan.offsets) {  // of a size that is known is one instruction or two
            std::memcpy(pixels, source[0] + offset, 8 * sizeof(uint32_t));
            pixels += 8;
          }
        } else if (neighbours) {
          for (const int32_t offset : plan.offsets) {
            for (int64_t i = 0; i < isa.block; ++i) *pixels++ = source[0][offset + i];
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
          for (int i = 0; i < n; ++i) use(position + i, group, first, channels, counts + i * stride);
        }
      }
    }
  });
}

void NhwcConv::run(const ConvShape& shape, const NhwcImage& x, const NhwcAffine& affine, float* y, const Host& host) {
  plan_for(shape);
  pack(x, host);
  if (path_.nhwc) {
    return on_path(host, [&](const NhwcCounting& job, int64_t channel, int64_t begin, int64_t end) {
      path_.nhwc->to_float(job, affine.from(channel, 0), begin, end, y + channel, shape.out_channels);
    });
  }
  const int32_t fan_in = static_cast<int32_t>(shape.fan_in());
  count(host, [&](int64_t position, int64_t group, int64_t first, int64_t n, const int32_t* counts) {
    const int64_t channel = group * shape.group_outputs() + first;
    finish(fan_in, counts, pads_of(position, group) + first, affine.from(channel, position * shape.out_channels), n,
           y + position * shape.out_channels + channel);
  });
}

void NhwcConv::run_int8(const ConvShape& shape, const NhwcImage& x, const NhwcInt8& q, int8_t* y, const Host& host) {
  plan_for(shape);
  pack(x, host);
  if (path_.nhwc) {
    return on_path(host, [&](const NhwcCounting& job, int64_t channel, int64_t begin, int64_t end) {
      path_.nhwc->to_int8(job, {q.low, q.high, q.scale + channel, q.bias + channel}, begin, end, y + channel,
                          shape.out_channels);
    });
  }
  const int32_t fan_in = static_cast<int32_t>(shape.fan_in());
  count(host, [&](int64_t position, int64_t group, int64_t first, int64_t n, const int32_t* counts) {
    const int64_t channel = group * shape.group_outputs() + first;
    const int32_t* pads = pads_of(position, group) + first;
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
  if (path_.nhwc && (shape.groups == 1 || shape.group_outputs() % kWordBits == 0)) {
    return on_path(host, [&](const NhwcCounting& job, int64_t channel, int64_t begin, int64_t end) {
      path_.nhwc->to_bits(job, limits + channel, begin, end, y + channel / kWordBits, words_of(shape.out_channels));
    });
  }
  const int64_t words = words_of(shape.out_channels);
  // Where channels of two groups share a word, the first one clears it.
  count(host, [&](int64_t position, int64_t group, int64_t first, int64_t n, const int32_t* counts) {
    const int64_t channel = group * shape.group_outputs() + first;
    const int32_t* pads = pads_of(position, group) + first;
    uint32_t* target = y + position * words;
    for (int64_t c = 0; c < n; ++c) {
      const int64_t o = channel + c;
      uint32_t& word = target[o / kWordBits];
      if (o % kWordBits == 0) word = 0;
      word |= static_cast<uint32_t>(2 * counts[c] + pads[c] > 2 * limits[o]) << (o % kWordBits);
    }
  });
}

void nhwc_pack(const Path& path, int64_t rows, int64_t channels, const float* values, uint32_t* bits,
               const Host& host) {
  const int64_t words = words_of(channels);
  run_ranges(host, rows, kTaskWords / words, [&](int64_t begin, int64_t end) {
    packing_of(path)(values + begin * channels, nullptr, channels, end - begin, bits + begin * words);
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
