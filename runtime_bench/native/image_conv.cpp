#include "image_conv.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "isa_image.h"
#include "reference.h"
#include "tasks.h"
#include "toom_cook.h"

namespace bnas {
namespace {

constexpr int64_t kSlabProducts = 16'000'000;  // of the definition; less is not worth a task
constexpr int64_t kLine = 64 / sizeof(float);

int64_t round_up(int64_t value, int64_t multiple) { return ceil_div(value, multiple) * multiple; }

// How the taps of a kernel row are taken together: run f multiplies those at f, f + stride, ... f + (taps - 1) * stride,
// which neighbouring outputs read one place further each. Those past the end of the row are zero.
struct Runs {
  explicit Runs(const ConvShape& s) {
    const int64_t each = ceil_div(s.kernel_w, s.stride_w), chunks = ceil_div(each, kMostTaps);
    taps = static_cast<int>(ceil_div(each, chunks));
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      for (int64_t phase = 0; phase < s.stride_w; ++phase) {
        const int64_t start = chunk * taps * s.stride_w + phase;
        if (start < s.kernel_w) starts.push_back(start);
      }
    }
    points = taps + kTileOutputs - 1;
  }

  int64_t depth(const ConvShape& s) const { return static_cast<int64_t>(starts.size()) * s.channels; }

  int taps, points;
  std::vector<int64_t> starts;
};

// What lies where in a thread's memory; sizes in floats.
struct Layout {
  Layout(const ConvShape& s, const PoolShape& pool, const Runs& runs, const ImageIsa& isa)
      : tiles(ceil_div(s.out_width(), kTileOutputs)),
        step(round_up(tiles, isa.lanes)),
        point_step(runs.depth(s) * step),
        row(runs.points * point_step),
        rows(std::min(s.kernel_h, s.height)),
        parts(s.stride_w == 1 || s.stride_w == 2 || s.stride_w == 4 ? s.stride_w * kTileOutputs : 0),
        last((runs.points - 1) * s.stride_w + runs.starts.back()),
        length(parts ? round_up(step + last / parts, isa.lanes) : step),
        channels(round_up(s.out_channels, isa.lanes)),
        pool_rows(std::min(pool.kernel_h, pool.height)) {
    int64_t end = 0;
    const auto place = [&](int64_t* at, int64_t size) {
      *at = end;
      end += round_up(size, kLine);
    };
    place(&ring_at, rows * row);
    place(&zeros_at, row);
    place(&pixels_at, parts * length);
    place(&parts_at, (parts ? parts : runs.points) * length);
    place(&result_at, tiles * kTileOutputs * channels);
    place(&pooled_at, pool_rows * pool.out_width() * channels);
    size = end;
  }

  int64_t tiles, step, point_step;  // of a transformed row: [points, depth, step]
  int64_t row, rows;                // a transformed row, and how many of them are kept
  int64_t parts, last, length;      // in how many a row of the image is split, 0: value by value
  int64_t channels, pool_rows;
  int64_t ring_at, zeros_at, pixels_at, parts_at, result_at, pooled_at, size;
};

// Of one thread, which goes on with its next slab where its last one ended if these are neighbours.
struct Scratch {
  std::vector<float> buffer;  // kept, because fresh pages cost more than the convolution
  uint64_t run = 0;
  int64_t image = 0, next_input = 0, next_conv = 0, next_out = 0;  // rows

  float* at(int64_t offset) {
    return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(buffer.data()) + 63) / 64 * 64) + offset;
  }
};

thread_local Scratch scratch;

class Rows {
 public:
  Rows(const ConvShape& s, const PoolShape& pool, const Runs& runs, const Layout& layout, const ImageIsa& isa,
       const float* weights, const ImageAffine& affine)
      : s_(s), pool_(pool), runs_(runs), layout_(layout), isa_(isa), weights_(weights) {
    const auto spread = [&](PerChannel given, float neutral) {
      for (int64_t o = 0; o < layout.channels; ++o) {
        ends_.push_back(o < s.out_channels ? given.values[given.count == 1 ? 0 : o] : neutral);
      }
      return given.count == 1 && given.values[0] == neutral;
    };
    spread(affine.bias, 0);
    const bool linear = spread(affine.slope, 1);
    rectify_ = !spread(affine.shift_out, 0) || !linear;
    for (const int64_t start : runs.starts) {
      for (int64_t i = 0; i < runs.points; ++i) {
        const int64_t place = i * s.stride_w + start;
        parts_at_.push_back(layout.parts ? place % layout.parts * layout.length + place / layout.parts
                                         : i * layout.length);
      }
    }
    pooled_ = pool.kernel_h * pool.kernel_w * pool.stride_h * pool.stride_w > 1;
  }

  // Output rows [first, end) of one image.
  void make(uint64_t run, int64_t number, const float* image, int64_t first, int64_t end, float* y) const {
    Scratch& m = scratch;
    const size_t wanted = static_cast<size_t>(layout_.size + kLine);
    if (m.buffer.size() < wanted) m.buffer.resize(wanted);
    if (m.run != run || m.image != number || m.next_out > first) {
      m.run = run, m.image = number;
      m.next_input = m.next_conv = 0;
      std::fill_n(m.at(layout_.zeros_at), layout_.row, 0.0f);
    }
    m.next_out = end;
    std::vector<const float*> rows;
    const int64_t plane = pool_.out_height() * pool_.out_width();
    for (int64_t row = first; row < end; ++row) {
      const int64_t top = row * pool_.stride_h - pool_.pad_top;
      const int64_t stop = std::min(top + pool_.kernel_h, pool_.height);
      rows.clear();
      for (int64_t r = std::max<int64_t>(top, 0); r < stop; ++r) {
        float* kept = m.at(layout_.pooled_at) + r % layout_.pool_rows * pool_.out_width() * layout_.channels;
        if (r >= m.next_conv) {
          convolve(m, image, r);
          m.next_conv = r + 1;
          if (pooled_) {
            isa_.pool(m.at(layout_.result_at), pool_.width, layout_.channels, pool_.kernel_w, pool_.stride_w,
                      pool_.pad_left, pool_.out_width(), kept);
          }
        }
        rows.push_back(pooled_ ? kept : m.at(layout_.result_at));
      }
      isa_.emit(rows.data(), static_cast<int64_t>(rows.size()), layout_.channels, pool_.out_width(), s_.out_channels,
                y + row * pool_.out_width(), plane);
    }
  }

 private:
  // One row of the convolution, with its activation: [pixels, channels].
  void convolve(Scratch& m, const float* image, int64_t row) const {
    const int64_t top = row * s_.stride_h - s_.pad_top, stop = std::min(top + s_.kernel_h, s_.height);
    for (int64_t r = std::max({top, m.next_input, int64_t{0}}); r < stop; ++r) transform(m, image + r * s_.width, r);
    m.next_input = std::max(m.next_input, stop);
    std::vector<const float*> rows;
    for (int64_t r = top; r < top + s_.kernel_h; ++r) {
      const bool inside = r >= 0 && r < s_.height;
      rows.push_back(m.at(inside ? layout_.ring_at + r % layout_.rows * layout_.row : layout_.zeros_at));
    }

    ImageJob job{};
    job.taps = runs_.taps;
    job.rows = rows.data(), job.kernel_h = s_.kernel_h, job.depth = runs_.depth(s_);
    job.step = layout_.step, job.point_step = layout_.point_step;
    job.rectify = rectify_;
    const int64_t blocks = ceil_div(layout_.tiles, isa_.tiles);
    for (int64_t o = 0; o < layout_.channels;) {
      const int registers = o + isa_.registers * isa_.lanes <= layout_.channels ? isa_.registers : 1;
      job.weights = weights_ + o * runs_.points * s_.kernel_h * job.depth;
      job.bias = ends_.data() + o;
      job.slope = job.bias + layout_.channels;
      job.shift = job.slope + layout_.channels;
      for (int64_t block = 0; block < blocks; ++block) {
        const int64_t first = block * layout_.tiles / blocks, end = (block + 1) * layout_.tiles / blocks;
        isa_.unit(job, registers, static_cast<int>(end - first), first, m.at(layout_.result_at) + o, layout_.channels);
      }
      o += registers * isa_.lanes;
    }
  }

  // Row `number` of the image, whose first channel is at `pixels`, into the ring.
  void transform(Scratch& m, const float* pixels, int64_t number) const {
    const float* inputs[kMostPoints];
    float *parts = m.at(layout_.parts_at), *out = m.at(layout_.ring_at) + number % layout_.rows * layout_.row;
    for (int64_t c = 0; c < s_.channels; ++c, pixels += s_.height * s_.width) {
      if (layout_.parts) {
        const int64_t size = layout_.parts * layout_.length, before = std::min(s_.pad_left, size);
        const int64_t inside = std::min(s_.width, size - before);
        float* row = m.at(layout_.pixels_at);
        std::fill_n(row, before, 0.0f);
        std::copy_n(pixels, inside, row + before);
        std::fill(row + before + inside, row + size, 0.0f);
        isa_.split(row, layout_.parts, layout_.length, parts);
      }
      for (size_t run = 0; run < runs_.starts.size(); ++run) {
        for (int i = 0; i < runs_.points; ++i) {
          const size_t place = run * static_cast<size_t>(runs_.points) + static_cast<size_t>(i);
          inputs[i] = parts + parts_at_[place];
          if (!layout_.parts) gather(pixels, i * s_.stride_w + runs_.starts[run] - s_.pad_left, parts + parts_at_[place]);
        }
        isa_.transform(runs_.taps, inputs, layout_.step, out + (run * s_.channels + c) * layout_.step,
                       layout_.point_step);
      }
    }
  }

  // to[t] = what tile t reads at `place`.
  void gather(const float* pixels, int64_t place, float* to) const {
    for (int64_t t = 0; t < layout_.step; ++t, place += kTileOutputs * s_.stride_w) {
      to[t] = place >= 0 && place < s_.width ? pixels[place] : 0;
    }
  }

  const ConvShape& s_;
  const PoolShape& pool_;
  const Runs& runs_;
  const Layout& layout_;
  const ImageIsa& isa_;
  const float* weights_;
  std::vector<float> ends_;  // [bias, slope, shift][channels]
  std::vector<int64_t> parts_at_;  // [runs, points]: what lies where in the parts of a row
  bool rectify_, pooled_;
};

}  // namespace

PoolShape ImagePool::over(const ConvShape& conv) const {
  PoolShape s;
  s.batch = conv.batch, s.words = conv.out_channels, s.height = conv.out_height(), s.width = conv.out_width();
  s.kernel_h = kernel_h, s.kernel_w = kernel_w, s.stride_h = stride_h, s.stride_w = stride_w;
  s.pad_top = pad_top, s.pad_left = pad_left, s.pad_bottom = pad_bottom, s.pad_right = pad_right;
  return s;
}

std::string check(const ConvShape& conv, const ImagePool& pool) {
  std::string error = check(conv);
  if (!error.empty()) return error;
  error = check(pool.over(conv));
  return error.empty() ? error : "pool: " + error;
}

ImageConv::ImageConv(const ConvShape& s, const float* weights, const Path& path) : path_(path) {
  if (!path.isa) {
    weights_.assign(weights, weights + s.out_channels * s.fan_in());
    return;
  }
  const ImageIsa& isa = *path.image;
  const Runs runs(s);
  const ToomCook m = toom_cook(runs.taps);
  const int64_t channels = round_up(s.out_channels, isa.lanes);
  weights_.reserve(static_cast<size_t>(channels * runs.points * s.kernel_h * runs.depth(s)));
  const auto transformed = [&](int64_t o, int64_t c, int64_t row, int64_t start, int point) {
    double sum = 0;
    for (int i = 0; i < runs.taps; ++i) {
      const int64_t column = start + i * s.stride_w;
      if (column >= s.kernel_w) break;
      sum += m.weights[point][i] * static_cast<double>(weights[((o * s.channels + c) * s.kernel_h + row) * s.kernel_w + column]);
    }
    return static_cast<float>(sum);
  };
  for (int64_t first = 0; first < channels;) {
    const int64_t block = (first + isa.registers * isa.lanes <= channels ? isa.registers : 1) * isa.lanes;
    for (int point = 0; point < runs.points; ++point) {
      for (int64_t row = 0; row < s.kernel_h; ++row) {
        for (const int64_t start : runs.starts) {
          for (int64_t c = 0; c < s.channels; ++c) {
            for (int64_t o = first; o < first + block; ++o) {
              weights_.push_back(o < s.out_channels ? transformed(o, c, row, start, point) : 0);
            }
          }
        }
      }
    }
    first += block;
  }
}

void ImageConv::run(const ConvShape& s, const ImagePool& pool, const float* x, const ImageAffine& affine, float* y,
                    const Host& host) const {
  const PoolShape out = pool.over(s);
  if (!path_.isa) return reference::image_conv(s, out, weights_.data(), x, affine, y);
  static std::atomic<uint64_t> runs_so_far{0};
  const uint64_t run = ++runs_so_far;
  const Runs runs(s);
  const Layout layout(s, out, runs, *path_.image);
  const Rows rows(s, out, runs, layout, *path_.image, weights_.data(), affine);
  const int64_t products = s.out_channels * s.fan_in() * s.out_height() * s.out_width();
  const int64_t slabs = std::clamp<int64_t>(products / kSlabProducts, 1, out.out_height());
  run_tasks(host, s.batch * slabs, [&](int64_t task) {
    const int64_t image = task / slabs, slab = task % slabs;
    rows.make(run, image, x + image * s.channels * s.height * s.width, slab * out.out_height() / slabs,
              (slab + 1) * out.out_height() / slabs,
              y + image * s.out_channels * out.out_height() * out.out_width());
  });
}

}  // namespace bnas
