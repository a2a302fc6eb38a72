#include "conv.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <new>

#include "plan.h"
#include "reference.h"

namespace bnas {
namespace {

constexpr int64_t kRunPixels = 1024;    // pixels packed at once, before they are placed into planes
constexpr int64_t kCountsSlack = 64;    // `count` may write that far past a strip
constexpr int64_t kMaxStrip = 512;

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

// The packed slab that a thread worked on last. Kept, because fresh pages cost more than the convolution, and because
// the next task of a thread is mostly another range of channels of the same slab.
struct Planes {
  std::unique_ptr<uint8_t[]> buffer;
  size_t size = 0;
  uint64_t call = 0;
  int64_t slab = 0;

  uint8_t* cells() const {
    return reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(buffer.get()) + 63) / 64 * 64);
  }
  bool reserve(size_t bytes) {  // false if there is no room
    if (size >= bytes) return true;
    call = 0;
    size = 0;
    buffer.reset();
    buffer.reset(new (std::nothrow) uint8_t[bytes + 64]());
    if (!buffer) return false;
    size = bytes;
    return true;
  }
};

thread_local Planes planes;
std::atomic<uint64_t> calls{0};

float at(PerChannel values, int64_t channel) { return values.values[values.count == 1 ? 0 : channel]; }

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

// Moves the valid counts of a strip together.
void squeeze(const Plan& plan, int64_t first, int64_t positions, int channels, int32_t* counts, int64_t stride) {
  for (int o = 0; o < channels; ++o) {
    int32_t* row = counts + o * stride;
    int64_t target = 0;
    for (int64_t p = first; p < first + positions;) {
      const int64_t column = p % plan.pitch;
      const int64_t end = std::min(p - column + plan.pitch, first + positions);
      const int64_t valid = std::max<int64_t>(0, std::min(end, p - column + plan.out_width) - p);
      if (target != p - first) std::memmove(row + target, row + (p - first), valid * sizeof(int32_t));
      target += valid;
      p = end;
    }
  }
}

// What both forms of the operator share.
struct Work {
  const Isa& isa;
  const ConvShape& shape;
  const Plan& plan;
  const uint32_t* weights;

  int64_t group_blocks() const { return ceil_div(shape.group_outputs(), isa.block); }

  // Packs one slab. `fill(channel, n, pixel, pixels, words)` gives the signs of n channels for a run of pixels.
  template <typename Fill>
  void pack(int64_t slab, uint8_t* cells, const Fill& fill) const {
    std::memset(cells, 0, static_cast<size_t>(plan.slab_cells * isa.cell_bytes));
    const int64_t base = slab * plan.slab_rows * shape.stride_h - shape.pad_top;
    const int64_t begin = std::max<int64_t>(base, 0), end = std::min(base + plan.row_span, shape.height);
    for (int64_t group = 0; group < shape.groups; ++group) {
      for (int64_t word = 0; word < plan.words; ++word, cells += plan.word_cells * isa.cell_bytes) {
        const int64_t channel = group * shape.group_channels() + word * kWordBits;
        const int64_t n = std::min(kWordBits, shape.group_channels() - word * kWordBits);
        for (int64_t row = begin; row < end;) {
          int64_t rows = 0;  // that follow each other, are read by some tap, and fit into a run
          while (row + rows < end && (rows == 0 || (rows + 1) * shape.width <= kRunPixels) &&
                 row_plane(row + rows - base) >= 0) {
            ++rows;
          }
          uint32_t words[kRunPixels];
          for (int64_t x0 = 0; rows > 0 && x0 < shape.width; x0 += kRunPixels) {
            const int64_t x1 = std::min(x0 + kRunPixels, shape.width);
            fill(channel, n, row * shape.width + x0, rows > 1 ? rows * shape.width : x1 - x0, words);
            for (int64_t r = 0; r < rows; ++r) place_row(row + r - base, x0, x1, words + r * shape.width, cells);
          }
          row += std::max<int64_t>(rows, 1);
        }
      }
    }
  }

  // Index among rows.residues of a row, counted from the slab's first input row; -1 if no tap reads it.
  int64_t row_plane(int64_t row) const {
    for (size_t i = 0; i < plan.rows.residues.size(); ++i) {
      const Plan::Residue& r = plan.rows.residues[i];
      if (row % shape.stride_h == r.residue) return row / shape.stride_h < r.needed ? static_cast<int64_t>(i) : -1;
    }
    return -1;
  }

  void place_row(int64_t row, int64_t x0, int64_t x1, const uint32_t* words, uint8_t* cells) const {
    const int64_t residues = static_cast<int64_t>(plan.columns.residues.size());
    for (int64_t q = 0; q < residues; ++q) {
      const Plan::Residue& r = plan.columns.residues[q];
      const int64_t base = shape.pad_left - r.residue;  // index j shows pixel j * stride - base
      if (x1 - 1 + base < 0) continue;
      const int64_t begin = std::max(r.first, ceil_div(std::max<int64_t>(x0 + base, 0), shape.stride_w));
      const int64_t end = std::min(r.last, (x1 - 1 + base) / shape.stride_w + 1);
      if (begin >= end) continue;
      const int64_t offset =
          (row_plane(row) * residues + q) * plan.plane_cells + row / shape.stride_h * plan.pitch + begin;
      isa.place(words + (begin * shape.stride_w - base - x0), shape.stride_w, end - begin,
                cells + offset * isa.cell_bytes, plan.cell_plane);
    }
  }

  // The blocks [first, last), numbered through all groups, of one packed slab: body(job, channel, channels, positions).
  template <typename Body>
  void for_blocks(int64_t slab, int64_t first, int64_t last, const uint8_t* cells, const Body& body) const {
    const int64_t rows = std::min(plan.slab_rows, shape.out_height() - slab * plan.slab_rows);
    Counting job;
    job.offsets = plan.offsets.data();
    job.steps = static_cast<int64_t>(plan.offsets.size());
    job.valid = plan.valid.data();
    job.junk = plan.pitch != plan.out_width;
    for (int64_t block = first; block < last; ++block) {
      const int64_t group = block / group_blocks(), in_group = block % group_blocks() * isa.block;
      job.cells = cells + group * plan.words * plan.word_cells * isa.cell_bytes;
      job.weights = weights + block * job.steps * isa.block;
      body(job, group * shape.group_outputs() + in_group,
           static_cast<int>(std::min<int64_t>(isa.block, shape.group_outputs() - in_group)), plan.positions(rows));
    }
  }

  // use(start, n, counts, stride) takes n counts of each channel, from the start-th output pixel of the slab on.
  template <typename Use>
  void count(Counting job, int64_t positions, int channels, const Use& use) const {
    alignas(64) int32_t counts[kMaxBlock * (kMaxStrip + kCountsSlack)];
    const int64_t stride = isa.strip + kCountsSlack;
    for (int64_t first = 0; first < positions; first += isa.strip) {
      const int64_t n = std::min(isa.strip, positions - first);
      isa.count(job, first, n, channels, counts, stride);
      if (job.junk && !isa.squeezes) squeeze(plan, first, n, channels, counts, stride);
      const int64_t start = plan.compact(first);
      use(start, plan.compact(first + n) - start, counts, stride);
      job.valid += isa.strip / 16;
    }
  }

  // Runs body(image, slab, range, cells) once for each task, with that slab packed in cells.
  template <typename Fill, typename Body>
  void run(const Host& host, const Fill& fill, const Body& body) const {
    const size_t bytes = static_cast<size_t>((plan.slab_cells + kOverread) * isa.cell_bytes);
    if (!planes.reserve(bytes)) throw std::bad_alloc();
    const uint64_t call = ++calls;
    std::atomic<bool> no_room{false};
    run_tasks(host, shape.batch * plan.slabs * plan.ranges, [&](int64_t task) {
      const int64_t range = task % plan.ranges, image_slab = task / plan.ranges;
      const int64_t image = image_slab / plan.slabs, slab = image_slab % plan.slabs;
      if (!planes.reserve(bytes)) {
        no_room = true;
        return;
      }
      if (planes.call != call || planes.slab != image_slab) {
        pack(slab, planes.cells(), [&](auto... run) { fill(image, run...); });
        planes.call = call;
        planes.slab = image_slab;
      }
      body(image, slab, range, planes.cells());
    });
    if (no_room) throw std::bad_alloc();
  }
};

}  // namespace

BinaryConv::BinaryConv(const ConvShape& shape, const uint8_t* w_packed, const Path& path) : path_(path) {
  const int64_t channels = shape.group_channels(), bytes = ceil_div(channels, 8);
  const int64_t taps = shape.kernel_h * shape.kernel_w, words = words_of(channels);
  if (!path.isa) {
    packed_.assign(w_packed, w_packed + shape.out_channels * taps * bytes);
    return;
  }
  const Isa& isa = *path.isa;
  const int64_t blocks = ceil_div(shape.group_outputs(), isa.block);
  weights_.assign(shape.groups * blocks * taps * words * isa.cells_per_word * isa.block, 0);
  uint32_t* target = weights_.data();
  for (int64_t group = 0; group < shape.groups; ++group) {
    for (int64_t block = 0; block < blocks; ++block) {
      for (int64_t tap = 0; tap < taps; ++tap) {
        for (int64_t word = 0; word < words; ++word) {
          for (int cell = 0; cell < isa.cells_per_word; ++cell) {
            for (int64_t o = 0; o < isa.block; ++o, ++target) {
              const int64_t in_group = block * isa.block + o;
              const int64_t out = group * shape.group_outputs() + in_group;
              const uint32_t value = in_group < shape.group_outputs()
                                         ? weight_word(w_packed + (out * taps + tap) * bytes, word, channels)
                                         : 0;
              *target = isa.weight_cell(value, cell);
            }
          }
        }
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
void BinaryConv::run_to_float(const ConvShape& shape, const Fill& fill, const Affine& affine, float* y,
                              const Host& host) const {
  const Isa& isa = *path_.isa;
  const std::shared_ptr<const Plan> plan = plan_for(shape);
  const Work work{isa, shape, *plan, weights_.data()};
  const int64_t out_pixels = shape.out_height() * shape.out_width(), blocks = shape.groups * work.group_blocks();
  const auto neutral = [](PerChannel p, float value) { return p.count == 1 && p.values[0] == value; };
  const bool rectify = !neutral(affine.slope, 1) || !neutral(affine.shift_in, 0) || !neutral(affine.shift_out, 0);

  const auto finish_of = [&](int64_t c) {
    Finish f;
    f.fan_in = static_cast<float>(shape.fan_in());
    f.scale = at(affine.scale, c);
    f.bias = at(affine.bias, c) + (affine.residual ? 0.0f : affine.residual_value);
    f.rectify = rectify;
    f.shift_in = at(affine.shift_in, c);
    f.slope = at(affine.slope, c);
    f.shift_out = at(affine.shift_out, c);
    return f;
  };

  work.run(host, fill, [&](int64_t image, int64_t slab, int64_t range, const uint8_t* cells) {
    const int64_t first = range * plan->range_blocks, last = std::min(first + plan->range_blocks, blocks);
    const int64_t origin = image * shape.out_channels * out_pixels + slab * plan->slab_rows * plan->out_width;
    work.for_blocks(slab, first, last, cells, [&](const Counting& job, int64_t c, int channels, int64_t positions) {
      Finish finish[kMaxBlock];
      for (int o = 0; o < channels; ++o) finish[o] = finish_of(c + o);
      const float* residual = affine.residual ? affine.residual + origin + c * out_pixels : nullptr;
      float* target = y + origin + c * out_pixels;
      if (isa.unit) return isa.unit(job, finish, channels, positions, residual, target, out_pixels);
      work.count(job, positions, channels, [&](int64_t start, int64_t n, const int32_t* counts, int64_t stride) {
        for (int o = 0; o < channels; ++o) {
          const int64_t offset = o * out_pixels + start;
          isa.finish(finish[o], counts + o * stride, residual ? residual + offset : nullptr, target + offset, n);
        }
      });
    });
  });
}

void BinaryConv::run(const ConvShape& shape, const float* x, PerChannel shift, const Affine& affine, float* y,
                     const Host& host) const {
  if (!path_.isa) return reference::conv(shape, packed_.data(), x, shift, affine, y);
  const int64_t pixels = shape.height * shape.width, step = shift.count == 1 ? 0 : 1;
  const auto fill = [&](int64_t image, int64_t channel, int64_t n, int64_t pixel, int64_t run, uint32_t* words) {
    path_.isa->pack(x + (image * shape.channels + channel) * pixels + pixel, pixels, shift.values + channel * step,
                    step, n, run, words);
  };
  run_to_float(shape, fill, affine, y, host);
}

void BinaryConv::run_from_bits(const ConvShape& shape, const uint32_t* x, const Affine& affine, float* y,
                               const Host& host) const {
  if (!path_.isa) return reference::conv_from_bits(shape, packed_.data(), x, affine, y);
  run_to_float(shape, fill_from_bits(shape, x), affine, y, host);
}

void BinaryConv::run_bits(const ConvShape& shape, const uint32_t* x, const int32_t* thresholds, uint32_t* y,
                          const Host& host) const {
  if (!path_.isa) return reference::conv_bits(shape, packed_.data(), x, thresholds, y);
  const Isa& isa = *path_.isa;
  const std::shared_ptr<const Plan> plan = plan_for(shape);
  const Work work{isa, shape, *plan, weights_.data()};
  const int64_t out_pixels = shape.out_height() * shape.out_width(), out_words = words_of(shape.out_channels);

  work.run(host, fill_from_bits(shape, x), [&](int64_t image, int64_t slab, int64_t range, const uint8_t* cells) {
    if (range > 0) return;  // channels of several blocks share a word, so one task makes all of them
    uint32_t* out = y + image * out_words * out_pixels;
    const int64_t begin = slab * plan->slab_rows * plan->out_width;
    const int64_t end = std::min(begin + plan->slab_rows * plan->out_width, out_pixels);
    for (int64_t word = 0; word < out_words; ++word) {
      std::memset(out + word * out_pixels + begin, 0, static_cast<size_t>(end - begin) * 4);
    }
    const int64_t blocks = shape.groups * work.group_blocks(), k = shape.fan_in();
    work.for_blocks(slab, 0, blocks, cells, [&](const Counting& job, int64_t first, int channels, int64_t positions) {
      work.count(job, positions, channels, [&](int64_t start, int64_t n, const int32_t* counts, int64_t stride) {
        for (int o = 0; o < channels; ++o) {
          const int64_t c = first + o;
          // dot < t  <=>  count > (k - t) / 2, rounded down; beyond [-1, k] nothing changes
          const int64_t room = k - static_cast<int64_t>(thresholds[c]);
          const int64_t half = (room - (room < 0 ? 1 : 0)) / 2;
          const int32_t limit = static_cast<int32_t>(std::clamp<int64_t>(half, -1, k));
          isa.threshold(counts + o * stride, isa.count_base + limit, static_cast<int>(c % kWordBits),
                        out + c / kWordBits * out_pixels + begin + start, n);
        }
      });
    });
  });
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
