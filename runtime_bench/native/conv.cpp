#include "conv.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>

#include "plan.h"
#include "reference.h"
#include "tasks.h"

namespace bnas {
namespace {

constexpr int64_t kRunPixels = 1024;  // pixels packed at once, before they are placed into planes, or one row
constexpr int64_t kBatchBytes = int64_t{1} << 20;   // float pixels, or cells, of the images that are worked on at once
constexpr int64_t kPackBytes = int64_t{256} << 10;  // float pixels worth handing over to another thread
constexpr int64_t kCountsSlack = 64;                // `count` may write that far past a strip
constexpr int64_t kMaxStrip = 512;
constexpr size_t kMostKept = size_t{16} << 20;

// Memory of a thread that is kept, because fresh pages cost more than the convolution; unless there is a lot of it.
class Room {
 public:
  void give_back_if_large() {
    if (size_ > kMostKept) buffer_.reset(), size_ = 0;
  }

  uint8_t* bytes(size_t size) {  // on a cache line. Throws std::bad_alloc
    if (size_ < size) {
      size_ = 0;
      buffer_.reset();
      buffer_.reset(new uint8_t[size + 64]());
      size_ = size;
    }
    return reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(buffer_.get()) + 63) / 64 * 64);
  }

 private:
  std::unique_ptr<uint8_t[]> buffer_;
  size_t size_ = 0;
};

thread_local Room planes;    // of the images that a call works on, for all its threads
thread_local Room run_room;  // words of a run of pixels, and of one row of output columns

// K, scale and bias of a channel; then rectify, shift_in, slope and shift_out as in Finish.
Finish make_finish(float fan_in, float scale, float bias, bool rectify, float shift_in, float slope, float shift_out) {
  Finish f{fan_in, scale, bias, rectify, 0, 1, 0, static_cast<int32_t>(fan_in) / 2, -2 * scale, bias, true};
  // The half of an odd K goes into the bias. The shift in front of the activation must not: beside a residual the sum
  // of bias and shift may be larger than all that the definition computes, and rounds accordingly.
  if (static_cast<int32_t>(fan_in) % 2) f.start = bias + scale;
  if (rectify) f.shift_in = shift_in, f.slope = slope, f.shift_out = shift_out;
  const float sum = bias + scale;
  f.finite = f.step - f.step == 0 && sum - sum == 0;
  return f;
}

uint32_t weight_word(const uint8_t* bytes, int64_t word, int64_t channels) {
  uint32_t value = 0;
  const int64_t last = std::min(channels, (word + 1) * kWordBits);
  for (int64_t c = word * kWordBits; c < last; ++c) {
    value |= static_cast<uint32_t>(bytes[c / 8] >> (c % 8) & 1) << (c % kWordBits);
  }
  return value;
}

// Signs of channels [first, first + n) of one bits image, for a run of pixels, as words whose bit 0 is `first`.
void shift_bits(const uint32_t* bits, int64_t plane, int64_t first, int64_t n, int64_t pixels, uint32_t* words) {
  const int64_t low = first % kWordBits;
  const uint32_t* source = bits + first / kWordBits * plane;
  const uint32_t mask = n == kWordBits ? ~0u : (1u << n) - 1;
  const bool spans = low + n > kWordBits;
  for (int64_t p = 0; p < pixels; ++p) {
    uint64_t pair = source[p];
    if (spans) pair |= static_cast<uint64_t>(source[p + plane]) << 32;
    words[p] = static_cast<uint32_t>(pair >> low) & mask;
  }
}

// `fill` of Work::run for a bits tensor.
auto fill_from_bits(const ConvShape& shape, const uint32_t* x) {
  const int64_t pixels = shape.height * shape.width, words_in = words_of(shape.channels);
  return [=](int64_t image, int64_t channel, int64_t n, int64_t pixel, int64_t run, uint32_t* words) {
    shift_bits(x + image * words_in * pixels + pixel, pixels, channel, n, run, words);
  };
}

// What both forms of the operator share.
struct Work {
  const Isa& isa;
  const ConvShape& shape;
  const Plan& plan;
  const uint32_t* weights;

  int64_t group_blocks() const { return ceil_div(shape.group_outputs(), isa.block); }

  int64_t run_pixels() const { return std::max(kRunPixels, shape.width); }

  // Packs rows [begin, end) of plan.row_cells of one image, with their padding.
  // `fill(channel, n, pixel, pixels, words)` gives the signs of n channels for a run of pixels.
  template <typename Fill>
  void pack(int64_t begin, int64_t end, uint8_t* cells, const Fill& fill) const {
    uint32_t* words = reinterpret_cast<uint32_t*>(run_room.bytes(static_cast<size_t>(run_pixels()) * sizeof(uint32_t)));
    const int64_t top = std::clamp(shape.pad_top, begin, end),
                  bottom = std::clamp(shape.pad_top + shape.height, top, end);
    for (int64_t group = 0; group < shape.groups; ++group, cells += plan.group_cells * isa.cell_bytes) {
      for (int64_t word = 0; word < words_of(shape.group_channels()); ++word) {
        const int64_t channel = group * shape.group_channels() + word * kWordBits;
        const int64_t bits = std::min(kWordBits, shape.group_channels() - word * kWordBits);
        uint8_t* planes = cells + word * plan.word_cells * isa.cell_bytes;
        const auto place_padding = [&](int64_t row, int64_t last) {
          for (; row < last; ++row) {
            if (row_cell(row) >= 0) place_row(nullptr, planes + row_cell(row) * isa.cell_bytes);
          }
        };
        place_padding(begin, top);
        place_padding(bottom, end);
        for (int64_t row = top; row < bottom;) {
          int64_t rows = 0;  // that follow each other, are read by some kernel row, and fit into a run
          while (row + rows < bottom && (rows + 1) * shape.width <= run_pixels() && row_cell(row + rows) >= 0) ++rows;
          if (rows > 0) fill(channel, bits, (row - shape.pad_top) * shape.width, rows * shape.width, words);
          for (int64_t r = 0; r < rows; ++r) {
            place_row(words + r * shape.width, planes + row_cell(row + r) * isa.cell_bytes);
          }
          row += std::max<int64_t>(rows, 1);
        }
      }
    }
  }

  int64_t row_cell(int64_t row) const { return plan.row_cells[static_cast<size_t>(row)]; }

  // words: of the pixels of one image row, null for one of padding. cells: where the first kernel column has it.
  void place_row(const uint32_t* words, uint8_t* cells) const {
    for (const Plan::Column& column : plan.columns) {
      const int64_t begin = words ? column.begin : 0, end = words ? column.end : 0;
      if (end > begin) {
        isa.place(words + begin * shape.stride_w + column.at, shape.stride_w, end - begin,
                  cells + begin * isa.cell_bytes, plan.cell_plane);
      }
      clear(cells, 0, begin);
      clear(cells, end, plan.out_width);
      cells += plan.tap_cells * isa.cell_bytes;
    }
  }

  // Cells [first, last) of all planes of a word.
  void clear(uint8_t* cells, int64_t first, int64_t last) const {
    const size_t bytes = static_cast<size_t>((last - first) * isa.cell_bytes);
    for (int64_t c = 0; bytes && c < isa.cells_per_word; ++c) {
      uint8_t* target = cells + (c * plan.cell_plane + first) * isa.cell_bytes;
      if (bytes == 4) {
        std::memset(target, 0, 4);  // a call less
      } else {
        std::memset(target, 0, bytes);
      }
    }
  }

  // Joins taps for output rows [row, row + rows) of one image, of which all that is read is packed.
  void join(int64_t row, int64_t rows, uint8_t* cells) const {
    const int64_t bytes = rows * plan.out_width * isa.cell_bytes;
    cells += row * plan.out_width * isa.cell_bytes;
    for (int64_t group = 0; group < shape.groups; ++group, cells += plan.group_cells * isa.cell_bytes) {
      for (const Plan::Join& join : plan.joins) {
        uint8_t* target = cells + join.cell * isa.cell_bytes;
        std::memcpy(target, cells + join.taps[0] * isa.cell_bytes, static_cast<size_t>(bytes));
        for (size_t j = 1; j < join.taps.size(); ++j) {
          isa.join(cells + join.taps[j] * isa.cell_bytes, static_cast<int>(j) * join.bits, bytes, target);
        }
      }
    }
  }

  // The blocks [first, last), numbered through all groups, of output rows [row, row + rows):
  // body(job, channel, channels, positions).
  template <typename Body>
  void for_blocks(int64_t row, int64_t rows, int64_t first, int64_t last, const uint8_t* cells,
                  const Body& body) const {
    Counting job;
    job.offsets = plan.offsets.data();
    job.steps = static_cast<int64_t>(plan.offsets.size());
    for (int64_t block = first; block < last; ++block) {
      const int64_t group = block / group_blocks(), in_group = block % group_blocks() * isa.block;
      job.cells = cells + (group * plan.group_cells + row * plan.out_width) * isa.cell_bytes;
      job.weights = weights + block * job.steps * isa.block;
      body(job, group * shape.group_outputs() + in_group,
           static_cast<int>(std::min<int64_t>(isa.block, shape.group_outputs() - in_group)), rows * plan.out_width);
    }
  }

  // use(first, n, counts, stride) takes n counts of each channel, from position `first` on.
  template <typename Use>
  void count(const Counting& job, int64_t positions, int channels, const Use& use) const {
    alignas(64) int32_t counts[kMaxBlock * (kMaxStrip + kCountsSlack)];
    const int64_t stride = isa.strip + kCountsSlack;
    for (int64_t first = 0; first < positions; first += isa.strip) {
      const int64_t n = std::min(isa.strip, positions - first);
      isa.count(job, first, n, channels, counts, stride);
      use(first, n, counts, stride);
    }
  }

  // Runs body(image, row, rows, range, cells) for each image, slab of output rows and range < ranges, with what these
  // rows read packed in `cells`. `overwrites`: body writes y where x is.
  template <typename Fill, typename Body>
  void run(const Host& host, int64_t ranges, bool overwrites, const Fill& fill, const Body& body) const {
    const int64_t image_bytes = shape.channels * shape.height * shape.width * 4;
    const int64_t cells_bytes = plan.image_cells * isa.cell_bytes;
    const int64_t most = std::clamp<int64_t>(kBatchBytes / std::max(image_bytes, cells_bytes), 1, shape.batch);
    const bool apart = ranges > 1 || (overwrites && shape.stride_h > 1);  // all is packed before the tasks
    const std::vector<int64_t> rows = apart ? all_rows() : shared_rows();
    const int64_t row_bytes = image_bytes / shape.height, chunk = std::max<int64_t>(1, kPackBytes / row_bytes);

    uint8_t* cells = planes.bytes(static_cast<size_t>(most * cells_bytes + kOverread * isa.cell_bytes));
    for (int64_t first = 0; first < shape.batch; first += most) {
      const int64_t images = std::min(most, shape.batch - first), listed = static_cast<int64_t>(rows.size());
      const auto pack_rows = [&](int64_t image, int64_t begin, int64_t end) {
        pack(begin, end, cells + image * cells_bytes, [&](auto... of_run) { fill(first + image, of_run...); });
      };
      run_tasks(host, ceil_div(images * listed, chunk), [&](int64_t task) {
        const int64_t end = std::min((task + 1) * chunk, images * listed);
        for (int64_t i = task * chunk; i < end;) {  // rows of one image that follow each other are one run
          const int64_t image = i / listed, row = rows[static_cast<size_t>(i % listed)];
          int64_t n = 1;
          while (i + n < end && (i + n) / listed == image && rows[static_cast<size_t>((i + n) % listed)] == row + n)
            ++n;
          pack_rows(image, row, row + n);
          i += n;
        }
      });
      const auto join_slab = [&](int64_t image, int64_t slab) {
        const int64_t row = plan.first_row(slab), n = plan.first_row(slab + 1) - row;
        join(row, n, cells + image * cells_bytes);
      };
      if (apart && !plan.joins.empty()) {
        run_tasks(host, images * plan.slabs, [&](int64_t task) { join_slab(task / plan.slabs, task % plan.slabs); });
      }
      run_tasks(host, images * plan.slabs * ranges, [&](int64_t task) {
        const int64_t range = task % ranges, slab = task / ranges % plan.slabs, image = task / ranges / plan.slabs;
        if (!apart) {
          const int64_t begin = slab > 0 ? std::max(plan.last_read(slab - 1), plan.first_read(slab)) : 0;
          const bool is_last = slab + 1 == plan.slabs;
          const int64_t end =
              is_last ? plan.last_read(slab) : std::min(plan.first_read(slab + 1), plan.last_read(slab));
          if (begin < end) pack_rows(image, begin, end);
          join_slab(image, slab);
        }
        const int64_t row = plan.first_row(slab);
        body(first + image, row, plan.first_row(slab + 1) - row, range, cells + image * cells_bytes);
      });
    }
    planes.give_back_if_large();
  }

  std::vector<int64_t> all_rows() const {
    std::vector<int64_t> rows(plan.row_cells.size());
    std::iota(rows.begin(), rows.end(), 0);
    return rows;
  }

  // Rows that more than one slab reads.
  std::vector<int64_t> shared_rows() const {
    std::vector<int64_t> rows;
    for (int64_t slab = 0; slab + 1 < plan.slabs; ++slab) {
      int64_t row = plan.first_read(slab + 1);
      if (!rows.empty()) row = std::max(row, rows.back() + 1);
      for (; row < plan.last_read(slab); ++row) rows.push_back(row);
    }
    return rows;
  }
};

}  // namespace

std::vector<Finish> make_finishes(const ConvShape& shape, const Affine& affine) {
  const auto neutral = [](PerChannel p, float value) { return p.count == 1 && p.values[0] == value; };
  const bool rectify = !neutral(affine.slope, 1) || !neutral(affine.shift_in, 0) || !neutral(affine.shift_out, 0);
  const auto each = [](PerChannel p) {
    return [values = p.values, step = p.count == 1 ? 0 : 1](int64_t channel) { return values[channel * step]; };
  };
  const auto scale = each(affine.scale), bias = each(affine.bias), slope = each(affine.slope);
  const auto shift_in = each(affine.shift_in), shift_out = each(affine.shift_out);
  const float fan_in = static_cast<float>(shape.fan_in()), added = affine.residual ? 0.0f : affine.residual_value;
  std::vector<Finish> finishes;
  finishes.reserve(static_cast<size_t>(shape.out_channels));
  for (int64_t i = 0; i < shape.out_channels; ++i) {
    finishes.push_back(make_finish(fan_in, scale(i), bias(i) + added, rectify, shift_in(i), slope(i), shift_out(i)));
  }
  return finishes;
}

BinaryConv::BinaryConv(const ConvShape& shape, const uint8_t* w_packed, const Path& path) : path_(path) {
  const int64_t channels = shape.group_channels(), bytes = ceil_div(channels, 8);
  const int64_t taps = shape.kernel_h * shape.kernel_w;
  if (!path.isa) {
    packed_.assign(w_packed, w_packed + shape.out_channels * taps * bytes);
    return;
  }
  const Isa& isa = *path.isa;
  const std::vector<Step> steps = steps_of(shape, isa);
  const int64_t blocks = ceil_div(shape.group_outputs(), isa.block);
  const int64_t cell_bits = kWordBits / isa.cells_per_word;
  for (int64_t block = 0; block < shape.groups * blocks; ++block) {
    const int64_t first = block % blocks * isa.block;  // output channel in the group
    const int64_t outputs = std::min<int64_t>(isa.block, shape.group_outputs() - first);
    const int64_t out = block / blocks * shape.group_outputs() + first;
    for (const Step& step : steps) {
      for (int64_t o = 0; o < isa.block; ++o) {
        uint32_t cell = 0;
        for (size_t j = 0; j < step.taps.size() && o < outputs; ++j) {
          const int64_t tap = step.taps[j].row * shape.kernel_w + step.taps[j].column;
          const uint32_t word = weight_word(w_packed + ((out + o) * taps + tap) * bytes, step.word, channels);
          const uint32_t mask = step.bits == kWordBits ? ~0u : (1u << step.bits) - 1;
          cell |= (word >> step.cell * cell_bits & mask) << static_cast<int64_t>(j) * step.bits;
        }
        weights_.push_back(isa.weight_cell(cell, 0));
      }
    }
  }
}

BinaryConv::~BinaryConv() = default;

std::shared_ptr<const Plan> BinaryConv::plan_for(const ConvShape& shape) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!plan_ || plan_->height != shape.height || plan_->width != shape.width) {
    plan_ = std::make_shared<const Plan>(make_plan(shape, *path_.isa));
  }
  return plan_;
}

template <typename Fill>
void BinaryConv::run_to_float(const ConvShape& shape, const void* x, const Fill& fill, const Affine& affine, float* y,
                              const Host& host) const {
  const Isa& isa = *path_.isa;
  const std::shared_ptr<const Plan> plan = plan_for(shape);
  const Work work{isa, shape, *plan, weights_.data()};
  const int64_t out_pixels = shape.out_height() * shape.out_width(), blocks = shape.groups * work.group_blocks();
  std::vector<Finish> made;
  if (!affine.finishes) made = make_finishes(shape, affine);
  const Finish* finishes = affine.finishes ? affine.finishes->data() : made.data();
  const bool overwrites = static_cast<const void*>(y) == x;
  const auto make = [&](int64_t image, int64_t row, int64_t rows, int64_t range, const uint8_t* cells) {
    const int64_t first = range * plan->range_blocks, last = std::min(first + plan->range_blocks, blocks);
    const int64_t origin = image * shape.out_channels * out_pixels + row * plan->out_width;
    const auto finish_block = [&](const Counting& job, int64_t c, int channels, int64_t positions) {
      const Finish* ends = finishes + c;
      const float* residual = affine.residual ? affine.residual + origin + c * out_pixels : nullptr;
      float* target = y + origin + c * out_pixels;
      if (isa.unit) return isa.unit(job, ends, channels, positions, residual, target, out_pixels);
      work.count(job, positions, channels, [&](int64_t start, int64_t n, const int32_t* counts, int64_t stride) {
        for (int o = 0; o < channels; ++o) {
          const int64_t offset = o * out_pixels + start;
          isa.finish(ends[o], counts + o * stride, residual ? residual + offset : nullptr, target + offset, n);
        }
      });
    };
    work.for_blocks(row, rows, first, last, cells, finish_block);
  };
  work.run(host, plan->ranges, overwrites, fill, make);
}

void BinaryConv::run(const ConvShape& shape, const float* x, PerChannel shift, const Affine& affine, float* y,
                     const Host& host) const {
  const int64_t pixels = shape.height * shape.width;
  if (!path_.isa) {
    std::vector<float> copy;  // it reads an image again and again
    if (x == y) copy.assign(x, x + shape.batch * shape.channels * pixels), x = copy.data();
    return reference::conv(shape, packed_.data(), x, shift, affine, y);
  }
  const int64_t step = shift.count == 1 ? 0 : 1;
  const auto fill = [&](int64_t image, int64_t channel, int64_t n, int64_t pixel, int64_t run, uint32_t* words) {
    path_.isa->pack(x + (image * shape.channels + channel) * pixels + pixel, pixels, shift.values + channel * step,
                    step, n, run, words);
  };
  run_to_float(shape, x, fill, affine, y, host);
}

void BinaryConv::run_from_bits(const ConvShape& shape, const uint32_t* x, const Affine& affine, float* y,
                               const Host& host) const {
  if (!path_.isa) return reference::conv_from_bits(shape, packed_.data(), x, affine, y);
  run_to_float(shape, x, fill_from_bits(shape, x), affine, y, host);
}

void BinaryConv::run_bits(const ConvShape& shape, const uint32_t* x, const int32_t* thresholds, uint32_t* y,
                          const Host& host) const {
  if (!path_.isa) return reference::conv_bits(shape, packed_.data(), x, thresholds, y);
  const Isa& isa = *path_.isa;
  const std::shared_ptr<const Plan> plan = plan_for(shape);
  const Work work{isa, shape, *plan, weights_.data()};
  const int64_t out_pixels = shape.out_height() * shape.out_width(), out_words = words_of(shape.out_channels);

  const int64_t blocks = shape.groups * work.group_blocks(), k = shape.fan_in();
  // Where channels of two groups share a word, one task makes all of them.
  const bool apart = shape.groups == 1 || shape.group_outputs() % kWordBits == 0;
  const int64_t ranges = apart ? plan->ranges : 1, range_blocks = apart ? plan->range_blocks : blocks;

  const auto make = [&](int64_t image, int64_t row, int64_t rows, int64_t range, const uint8_t* cells) {
    uint32_t* out = y + image * out_words * out_pixels;
    const int64_t begin = row * plan->out_width, end = begin + rows * plan->out_width;
    const int64_t first_block = range * range_blocks, last_block = std::min(first_block + range_blocks, blocks);
    const int64_t last_word = last_block == blocks ? out_words : last_block * isa.block / kWordBits;
    for (int64_t word = first_block * isa.block / kWordBits; word < last_word; ++word) {
      std::memset(out + word * out_pixels + begin, 0, static_cast<size_t>(end - begin) * 4);
    }
    const auto finish = [&](const Counting& job, int64_t first, int channels, int64_t positions) {
      work.count(job, positions, channels, [&](int64_t start, int64_t n, const int32_t* counts, int64_t stride) {
        for (int o = 0; o < channels; ++o) {
          const int64_t c = first + o;
          // dot < t  <=>  count > (k - t) / 2, rounded down; beyond [-1, k] nothing changes
          const int64_t room = k - static_cast<int64_t>(thresholds[c]);
          const int64_t half = (room - (room < 0 ? 1 : 0)) / 2;
          const int32_t limit = static_cast<int32_t>(std::clamp<int64_t>(half, -1, k));
          isa.threshold(counts + o * stride, limit, static_cast<int>(c % kWordBits),
                        out + c / kWordBits * out_pixels + begin + start, n);
        }
      });
    };
    work.for_blocks(row, rows, first_block, last_block, cells, finish);
  };
  work.run(host, ranges, false, fill_from_bits(shape, x), make);
}

void pack_signs(const Path& path, int64_t batch, int64_t channels, int64_t pixels, const float* x, PerChannel shift,
                uint32_t* bits, const Host& host) {
  if (!path.isa) return reference::pack_signs(batch, channels, pixels, x, shift, bits);
  const int64_t words = words_of(channels), runs = ceil_div(pixels, kRunPixels);
  run_tasks(host, batch * words * runs, [&](int64_t task) {
    const int64_t run = task % runs * kRunPixels, word = task / runs % words, n = task / runs / words;
    const int64_t channel = word * kWordBits, step = shift.count == 1 ? 0 : 1;
    path.isa->pack(x + (n * channels + channel) * pixels + run, pixels, shift.values + channel * step, step,
                   std::min(kWordBits, channels - channel), std::min(kRunPixels, pixels - run),
                   bits + (n * words + word) * pixels + run);
  });
}

void max_pool_bits(const PoolShape& s, const uint32_t* x, uint32_t* y, const Host& host) {
  const int64_t out_h = s.out_height(), out_w = s.out_width();
  run_tasks(host, s.batch * s.words, [&](int64_t plane) {
    const uint32_t* source = x + plane * s.height * s.width;
    uint32_t* target = y + plane * out_h * out_w;
    for (int64_t row = 0; row < out_h; ++row) {
      const int64_t y0 = std::max<int64_t>(row * s.stride_h - s.pad_top, 0);
      const int64_t y1 = std::min(row * s.stride_h - s.pad_top + s.kernel_h, s.height);
      for (int64_t column = 0; column < out_w; ++column) {
        const int64_t x0 = std::max<int64_t>(column * s.stride_w - s.pad_left, 0);
        const int64_t x1 = std::min(column * s.stride_w - s.pad_left + s.kernel_w, s.width);
        uint32_t all_negative = ~0u;
        for (int64_t iy = y0; iy < y1; ++iy) {
          for (int64_t ix = x0; ix < x1; ++ix) all_negative &= source[iy * s.width + ix];
        }
        target[row * out_w + column] = all_negative;
      }
    }
  });
}

}  // namespace bnas
