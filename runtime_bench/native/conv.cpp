#include "conv.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <stdexcept>

#include "plan.h"
#include "reference.h"

namespace bnas {
namespace {

constexpr int64_t kRunPixels = 1024;                // pixels packed at once, before they are placed into planes
constexpr int64_t kTaskMacs = int64_t{16} << 20;    // binary MACs worth the handing over to another thread
constexpr int64_t kSlabBytes = int64_t{1} << 20;    // of the images worked on between two barriers: what a cache holds
constexpr int64_t kCountsSlack = 64;                // `count` may write that far past a strip
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

// The packed images of the call that runs on this thread; kept, because fresh pages cost more than the convolution.
uint8_t* planes_of(size_t bytes) {
  thread_local std::unique_ptr<uint8_t[]> buffer;
  thread_local size_t size = 0;
  if (size < bytes) {
    buffer.reset();
    size = 0;
    buffer.reset(new uint8_t[bytes + 64]());
    size = bytes;
  }
  return reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(buffer.get()) + 63) / 64 * 64);
}

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

// Moves the valid counts of a strip together; returns nothing, the caller knows how many there are.
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

// Everything that both forms of the operator share. `fill(group_channel, n, run, words)` gives the signs of n channels
// over a run of pixels; `use(image, out_channel, channels, start, n, counts, stride)` takes the counts of a block.
struct Engine {
  const Isa& isa;
  const ConvShape& shape;
  const Plan& plan;
  const uint32_t* weights;
  uint8_t* planes;

  int64_t image_bytes() const { return plan.image_cells * isa.cell_bytes; }

  int64_t fill_tasks() const { return plan.words * plan.groups * plan.row_runs; }

  template <typename Fill>
  void fill_task(int64_t image_slot, int64_t task, const Fill& fill) const {
    const int64_t run = task % plan.row_runs, word = task / plan.row_runs % plan.words;
    const int64_t group = task / plan.row_runs / plan.words;
    const int64_t channel = group * shape.group_channels() + word * kWordBits;
    const int64_t n = std::min(kWordBits, shape.group_channels() - word * kWordBits);
    uint8_t* cells = planes + image_slot * image_bytes() +
                     (group * plan.words + word) * plan.word_cells * isa.cell_bytes;
    const int64_t row_end = std::min((run + 1) * plan.rows_per_run, shape.height);
    uint32_t words[kRunPixels];
    for (int64_t row = run * plan.rows_per_run; row < row_end;) {
      int64_t rows = 0;  // that follow each other and are read by some tap
      while (row + rows < row_end && (rows + 1) * shape.width <= std::max(kRunPixels, shape.width) &&
             plan.row_of(row + rows) >= 0) {
        ++rows;
      }
      if (rows == 0) {
        ++row;
        continue;
      }
      for (int64_t x0 = 0; x0 < shape.width; x0 += kRunPixels) {
        const int64_t x1 = std::min(x0 + kRunPixels, shape.width);
        fill(channel, n, row * shape.width + x0, rows > 1 ? rows * shape.width : x1 - x0, words);
        for (int64_t r = 0; r < rows; ++r) place_row(row + r, x0, x1, words + r * shape.width, cells);
      }
      row += rows;
    }
  }

  void place_row(int64_t row, int64_t x0, int64_t x1, const uint32_t* words, uint8_t* cells) const {
    const int64_t residues = static_cast<int64_t>(plan.columns.residues.size());
    for (int64_t q = 0; q < residues; ++q) {
      const Plan::Residue& r = plan.columns.residues[q];
      // columns j of this residue show pixel j * stride + r.residue - pad_left
      const int64_t base = shape.pad_left - r.residue;
      const int64_t begin = std::max(r.first, ceil_div(std::max<int64_t>(x0 + base, 0), shape.stride_w));
      const int64_t end = std::min(r.last, (x1 - 1 + base) / shape.stride_w + 1);
      if (x1 - 1 + base < 0 || begin >= end) continue;
      const int64_t offset = (plan.row_of(row) * residues + q) * plan.plane_cells +
                             plan.row_in_plane(row) * plan.pitch + begin;
      isa.place(words + (begin * shape.stride_w - base - x0), shape.stride_w, end - begin,
                cells + offset * isa.cell_bytes, plan.cell_plane);
    }
  }

  int64_t blocks() const { return ceil_div(shape.group_outputs(), isa.block); }

  template <typename Use>
  void count_chunk(int64_t image_slot, int64_t group, int64_t block, int64_t chunk, const Use& use) const {
    alignas(64) int32_t counts[kMaxBlock * (kMaxStrip + kCountsSlack)];
    const int64_t stride = isa.strip + kCountsSlack;
    Counting job;
    job.cells = planes + image_slot * image_bytes() + group * plan.words * plan.word_cells * isa.cell_bytes;
    job.offsets = plan.offsets.data();
    job.steps = static_cast<int64_t>(plan.offsets.size());
    job.weights = weights + (group * blocks() + block) * job.steps * isa.block;
    const int64_t channel = group * shape.group_outputs() + block * isa.block;
    const int channels =
        static_cast<int>(std::min<int64_t>(isa.block, shape.group_outputs() - block * isa.block));
    const int64_t end = std::min((chunk + 1) * plan.chunk, plan.positions);
    for (int64_t first = chunk * plan.chunk; first < end; first += isa.strip) {
      const int64_t positions = std::min(isa.strip, end - first);
      job.valid = plan.valid.data() + first / 16;
      isa.count(job, first, positions, channels, counts, stride);
      if (!isa.squeezes) squeeze(plan, first, positions, channels, counts, stride);
      const int64_t start = plan.compact(first);
      use(channel, channels, start, plan.compact(first + positions) - start, counts, stride);
    }
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
    plan_ = std::make_shared<const Plan>(make_plan(shape, *path_.isa, kTaskMacs, kRunPixels));
  }
  return plan_;
}

void BinaryConv::run(const ConvShape& shape, const float* x, PerChannel shift, const Affine& affine, float* y,
                     const Host& host) const {
  if (!path_.isa) return reference::conv(shape, packed_.data(), x, shift, affine, y);
  const Isa& isa = *path_.isa;
  const std::shared_ptr<const Plan> plan = plan_for(shape);
  const int64_t in_pixels = shape.height * shape.width, out_pixels = shape.out_height() * shape.out_width();
  const int64_t image_bytes = plan->image_cells * isa.cell_bytes;
  const int64_t slab = std::clamp<int64_t>(kSlabBytes / (shape.channels * in_pixels * 4), 1, shape.batch);
  uint8_t* planes = planes_of(static_cast<size_t>(slab * image_bytes + kOverread * isa.cell_bytes));
  const Engine engine{isa, shape, *plan, weights_.data(), planes};
  const auto neutral = [](PerChannel p, float value) { return p.count == 1 && p.values[0] == value; };
  const bool shifts = !neutral(affine.shift_in, 0) || !neutral(affine.shift_out, 0);
  const bool rectify = shifts || !neutral(affine.slope, 1);

  for (int64_t n0 = 0; n0 < shape.batch; n0 += slab) {
    const int64_t images = std::min(slab, shape.batch - n0);
    std::memset(planes, 0, static_cast<size_t>(images * image_bytes));
    run_tasks(host, images * engine.fill_tasks(), [&](int64_t task) {
      const int64_t slot = task / engine.fill_tasks();
      const float* image = x + (n0 + slot) * shape.channels * in_pixels;
      engine.fill_task(slot, task % engine.fill_tasks(),
                       [&](int64_t channel, int64_t n, int64_t pixel, int64_t pixels, uint32_t* words) {
                         const int64_t step = shift.count == 1 ? 0 : 1;
                         isa.pack(image + channel * in_pixels + pixel, in_pixels, shift.values + channel * step, step,
                                  n, pixels, words);
                       });
    });
    const int64_t per_image = shape.groups * plan->chunks * engine.blocks();
    run_tasks(host, images * per_image, [&](int64_t task) {
      const int64_t block = task % engine.blocks(), chunk = task / engine.blocks() % plan->chunks;
      const int64_t group = task / engine.blocks() / plan->chunks % shape.groups, slot = task / per_image;
      const int64_t image = (n0 + slot) * shape.out_channels * out_pixels;
      engine.count_chunk(slot, group, block, chunk,
                         [&](int64_t channel, int channels, int64_t start, int64_t n, const int32_t* counts,
                             int64_t stride) {
                           for (int o = 0; o < channels; ++o) {
                             const int64_t c = channel + o, offset = image + c * out_pixels + start;
                             Finish f;
                             f.fan_in = static_cast<float>(shape.fan_in());
                             f.scale = at(affine.scale, c);
                             f.bias = at(affine.bias, c);
                             if (!affine.residual) f.bias += affine.residual_value;
                             f.rectify = rectify;
                             f.shift_in = at(affine.shift_in, c);
                             f.slope = at(affine.slope, c);
                             f.shift_out = at(affine.shift_out, c);
                             isa.finish(f, counts + o * stride, affine.residual ? affine.residual + offset : nullptr,
                                        y + offset, n);
                           }
                         });
    });
  }
}

void BinaryConv::run_bits(const ConvShape& shape, const uint32_t* x, const int32_t* thresholds, uint32_t* y,
                          const Host& host) const {
  if (!path_.isa) return reference::conv_bits(shape, packed_.data(), x, thresholds, y);
  const Isa& isa = *path_.isa;
  const std::shared_ptr<const Plan> plan = plan_for(shape);
  const int64_t in_pixels = shape.height * shape.width, out_pixels = shape.out_height() * shape.out_width();
  const int64_t in_words = words_of(shape.channels), out_words = words_of(shape.out_channels);
  const int64_t image_bytes = plan->image_cells * isa.cell_bytes;
  const int64_t slab = std::clamp<int64_t>(kSlabBytes / (in_words * in_pixels * 4), 1, shape.batch);
  uint8_t* planes = planes_of(static_cast<size_t>(slab * image_bytes + kOverread * isa.cell_bytes));
  const Engine engine{isa, shape, *plan, weights_.data(), planes};

  for (int64_t n0 = 0; n0 < shape.batch; n0 += slab) {
    const int64_t images = std::min(slab, shape.batch - n0);
    std::memset(planes, 0, static_cast<size_t>(images * image_bytes));
    run_tasks(host, images * engine.fill_tasks(), [&](int64_t task) {
      const int64_t slot = task / engine.fill_tasks();
      const uint32_t* image = x + (n0 + slot) * in_words * in_pixels;
      engine.fill_task(slot, task % engine.fill_tasks(),
                       [&](int64_t channel, int64_t n, int64_t pixel, int64_t pixels, uint32_t* words) {
                         shift_bits(image + pixel, in_pixels, channel, n, pixels, words);
                       });
    });
    // Channels of several blocks share a word, so one task makes all of them for its pixels.
    run_tasks(host, images * plan->chunks, [&](int64_t task) {
      const int64_t slot = task / plan->chunks, chunk = task % plan->chunks;
      uint32_t* image = y + (n0 + slot) * out_words * out_pixels;
      const int64_t begin = plan->compact(chunk * plan->chunk);
      const int64_t end = plan->compact(std::min((chunk + 1) * plan->chunk, plan->positions));
      for (int64_t word = 0; word < out_words; ++word) {
        std::memset(image + word * out_pixels + begin, 0, static_cast<size_t>(end - begin) * 4);
      }
      for (int64_t group = 0; group < shape.groups; ++group) {
        for (int64_t block = 0; block < engine.blocks(); ++block) {
          engine.count_chunk(slot, group, block, chunk,
                             [&](int64_t channel, int channels, int64_t start, int64_t n, const int32_t* counts,
                                 int64_t stride) {
                               for (int o = 0; o < channels; ++o) {
                                 const int64_t c = channel + o, k = shape.fan_in();
                                 // dot < t  <=>  count > (k - t) / 2, rounded down; outside [-1, k] nothing changes
                                 const int64_t room = k - static_cast<int64_t>(thresholds[c]);
                                 const int64_t half = (room - (room < 0 ? 1 : 0)) / 2;
                                 isa.threshold(counts + o * stride,
                                               static_cast<int32_t>(std::clamp<int64_t>(half, -1, k)),
                                               static_cast<int>(c % kWordBits),
                                               image + c / kWordBits * out_pixels + start, n);
                               }
                             });
        }
      }
    });
  }
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
