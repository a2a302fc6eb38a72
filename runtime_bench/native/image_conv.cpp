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
constexpr size_t kMostKept = size_t{16} << 20;  // bytes

int64_t round_up(int64_t value, int64_t multiple) { return ceil_div(value, multiple) * multiple; }

// How the taps of a kernel are taken together along one axis: run f multiplies those at f, f + stride, ...
// f + (taps - 1) * stride, which neighbouring outputs read one place further each. Those past the end are zero.
struct Runs {
  Runs(int64_t kernel, int64_t of_stride) : stride(of_stride) {
    const int64_t each = ceil_div(kernel, stride), chunks = ceil_div(each, kMostTaps);
    taps = static_cast<int>(ceil_div(each, chunks));
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      for (int64_t phase = 0; phase < stride; ++phase) {
        const int64_t start = chunk * taps * stride + phase;
        if (start >= kernel) break;
        starts.push_back(start);
      }
    }
    points = taps + kTileOutputs - 1;
  }

  int64_t count() const { return static_cast<int64_t>(starts.size()); }
  int64_t place(int64_t run, int64_t i) const { return starts[static_cast<size_t>(run)] + i * stride; }
  int64_t span() const { return place(count() - 1, points - 1) + 1; }  // what a tile reads

  int64_t stride;
  int taps, points;
  std::vector<int64_t> starts;
};

// What lies where in a thread's memory; sizes in floats.
struct Layout {
  Layout(const ConvShape& s, const PoolShape& pool, const Runs& down, const Runs& across, const ImageIsa& isa)
      : tiles(ceil_div(s.out_width(), kTileOutputs)),
        step(round_up(tiles, isa.lanes)),
        depth(across.count() * s.channels),
        row(across.points * depth * step),
        rows(std::min(down.span(), s.height)),
        parts(s.stride_w == 1 || s.stride_w == 2 || s.stride_w == 4 ? s.stride_w * kTileOutputs : 0),
        length(parts ? round_up(step + (across.span() - 1) / parts, isa.lanes) : step),
        channels(round_up(s.out_channels, isa.lanes)),
        result_row(tiles * kTileOutputs * channels),
        pooled_row(pool.out_width() * channels),
        pooled_rows(std::min(pool.kernel_h + kTileOutputs - 1, pool.height)) {
    const auto place = [&](int64_t* at, int64_t count) {
      *at = size;
      size += round_up(count, kLine);
    };
    place(&ring_at, rows * row);
    place(&zeros_at, row);
    place(&down_at, down.points * down.count() * row);
    place(&pixels_at, parts * length);
    place(&parts_at, (parts ? parts : across.points) * length);
    place(&result_at, kTileOutputs * result_row);
    place(&pooled_at, pooled_rows * pooled_row);
  }

  int64_t tiles, step, depth;  // of a transformed row: [points, depth, step]
  int64_t row, rows;           // a transformed row, and how many of them are kept
  int64_t parts, length;       // in how many a row of the image is split, 0: value by value
  int64_t channels, result_row, pooled_row, pooled_rows;
  int64_t ring_at, zeros_at, down_at, pixels_at, parts_at, result_at, pooled_at, size = 0;
};

// Of one thread, which keeps what its last slab has made if the next one of the same image lies further down, at once
// or after slabs of others: rows are made when they are asked for, and what was skipped is not read any more.
struct Scratch {
  std::vector<float> buffer;  // kept unless there is a lot of it: fresh pages cost more than the convolution
  uint64_t run = 0;
  int64_t image = 0, next_input = 0, next_conv = 0, next_out = 0;  // images and rows

  float* at(int64_t offset) {
    return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(buffer.data()) + 63) / 64 * 64) + offset;
  }
};

thread_local Scratch scratch;

class Rows {
 public:
  Rows(const ConvShape& s, const PoolShape& pool, const Runs& down, const Runs& across, const Layout& layout,
       const ImageIsa& isa, const float* weights, const ImageAffine& affine)
      : s_(s), pool_(pool), down_(down), across_(across), layout_(layout), isa_(isa), weights_(weights) {
    const auto spread = [&](PerChannel given, float neutral) {
      for (int64_t o = 0; o < layout.channels; ++o) {
        ends_.push_back(o < s.out_channels ? given.values[given.count == 1 ? 0 : o] : neutral);
      }
      return given.count == 1 && given.values[0] == neutral;
    };
    spread(affine.bias, 0);
    const bool linear = spread(affine.slope, 1);
    rectify_ = !spread(affine.shift_out, 0) || !linear;
    for (int64_t run = 0; run < across.count(); ++run) {
      for (int64_t i = 0; i < across.points; ++i) {
        const int64_t place = across.place(run, i);
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
        if (r >= m.next_conv) {
          m.next_conv = r / kTileOutputs * kTileOutputs;
          convolve(m, image, m.next_conv);
          m.next_conv += kTileOutputs;
        }
        rows.push_back(pooled_ ? pooled(m, r) : result(m, r));
      }
      isa_.emit(rows.data(), static_cast<int64_t>(rows.size()), layout_.channels, pool_.out_width(), s_.out_channels,
                y + row * pool_.out_width(), plane);
    }
    if (m.buffer.size() * sizeof(float) > kMostKept) m = {};
  }

 private:
  float* result(Scratch& m, int64_t row) const {
    return m.at(layout_.result_at) + row % kTileOutputs * layout_.result_row;
  }

  float* pooled(Scratch& m, int64_t row) const {
    return m.at(layout_.pooled_at) + row % layout_.pooled_rows * layout_.pooled_row;
  }

  // The rows of the convolution from `first` on that one row of tiles has, with their activation: [pixels, channels],
  // and pooled along the row.
  void convolve(Scratch& m, const float* image, int64_t first) const {
    const int64_t top = first * s_.stride_h - s_.pad_top, stop = std::min(top + down_.span(), s_.height);
    for (int64_t r = std::max({top, m.next_input, int64_t{0}}); r < stop; ++r) {
      if ((r - top) % s_.stride_h < s_.kernel_h) across(m, image + r * s_.width, r);
    }
    m.next_input = std::max(m.next_input, stop);
    std::vector<const float*> rows(static_cast<size_t>(down_.points * down_.count()));
    for (int64_t run = 0; run < down_.count(); ++run) {
      const float* inputs[kMostPoints];
      for (int i = 0; i < down_.points; ++i) {
        const int64_t r = top + down_.place(run, i);
        inputs[i] = m.at(r >= 0 && r < s_.height ? layout_.ring_at + r % layout_.rows * layout_.row : layout_.zeros_at);
        rows[static_cast<size_t>(i * down_.count() + run)] =
            m.at(layout_.down_at) + (i * down_.count() + run) * layout_.row;
      }
      isa_.transform(down_.taps, inputs, layout_.row, m.at(layout_.down_at) + run * layout_.row,
                     down_.count() * layout_.row);
    }

    ImageJob job{};
    job.taps_h = down_.taps, job.taps_w = across_.taps;
    job.rows = rows.data(), job.runs_h = down_.count(), job.depth = layout_.depth;
    job.step = layout_.step, job.point_step = layout_.depth * layout_.step;
    job.rectify = rectify_;
    const int64_t blocks = ceil_div(layout_.tiles, isa_.tiles);
    for (int64_t o = 0; o < layout_.channels;) {
      const int registers = o + isa_.registers * isa_.lanes <= layout_.channels ? isa_.registers : 1;
      job.weights = weights_ + o * across_.points * down_.points * job.runs_h * job.depth;
      job.bias = ends_.data() + o;
      job.slope = job.bias + layout_.channels;
      job.shift = job.slope + layout_.channels;
      for (int64_t block = 0; block < blocks; ++block) {
        const int64_t from = block * layout_.tiles / blocks, end = (block + 1) * layout_.tiles / blocks;
        isa_.unit(job, registers, static_cast<int>(end - from), from, m.at(layout_.result_at) + o, layout_.result_row,
                  layout_.channels);
      }
      o += registers * isa_.lanes;
    }
    if (!pooled_) return;
    for (int64_t r = first; r < std::min(first + kTileOutputs, pool_.height); ++r) {
      isa_.pool(result(m, r), pool_.width, layout_.channels, pool_.kernel_w, pool_.stride_w, pool_.pad_left,
                pool_.out_width(), pooled(m, r));
    }
  }

  // Row `number` of the image, whose first channel is at `pixels`, transformed along itself, into the ring.
  void across(Scratch& m, const float* pixels, int64_t number) const {
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
      for (int64_t run = 0; run < across_.count(); ++run) {
        for (int i = 0; i < across_.points; ++i) {
          const int64_t at = parts_at_[static_cast<size_t>(run * across_.points + i)];
          if (!layout_.parts) gather(pixels, across_.place(run, i) - s_.pad_left, parts + at);
          inputs[i] = parts + at;
        }
        isa_.transform(across_.taps, inputs, layout_.step, out + (run * s_.channels + c) * layout_.step,
                       layout_.depth * layout_.step);
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
  const Runs &down_, &across_;
  const Layout& layout_;
  const ImageIsa& isa_;
  const float* weights_;
  std::vector<float> ends_;        // [bias, slope, shift][channels]
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
  const Runs down(s.kernel_h, s.stride_h), across(s.kernel_w, s.stride_w);
  const ToomCook rows = toom_cook(down.taps), columns = toom_cook(across.taps);
  const int64_t channels = round_up(s.out_channels, isa.lanes);
  // kernel: [kernel_h, kernel_w]
  const auto transformed = [&](const float* kernel, int64_t row_run, int row_point, int64_t run, int point) {
    double sum = 0;
    for (int i = 0; i < down.taps; ++i) {
      for (int j = 0; j < across.taps; ++j) {
        const int64_t row = down.place(row_run, i), column = across.place(run, j);
        if (row >= s.kernel_h || column >= s.kernel_w) continue;
        const double weight = kernel[row * s.kernel_w + column];
        sum += rows.weights[row_point][i] * columns.weights[point][j] * weight;
      }
    }
    return static_cast<float>(sum);
  };
  weights_.reserve(
      static_cast<size_t>(channels * across.points * down.points * down.count() * across.count() * s.channels));
  for (int64_t first = 0; first < channels;) {
    const int64_t block = (first + isa.registers * isa.lanes <= channels ? isa.registers : 1) * isa.lanes;
    for (int point = 0; point < across.points; ++point) {
      for (int row_point = 0; row_point < down.points; ++row_point) {
        for (int64_t row_run = 0; row_run < down.count(); ++row_run) {
          for (int64_t run = 0; run < across.count(); ++run) {
            for (int64_t c = 0; c < s.channels; ++c) {
              for (int64_t o = first; o < first + block; ++o) {
                const float* kernel = weights + (o * s.channels + c) * s.kernel_h * s.kernel_w;
                weights_.push_back(o < s.out_channels ? transformed(kernel, row_run, row_point, run, point) : 0);
              }
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
  const Runs down(s.kernel_h, s.stride_h), across(s.kernel_w, s.stride_w);
  const Layout layout(s, out, down, across, *path_.image);
  const Rows rows(s, out, down, across, layout, *path_.image, weights_.data(), affine);
  const int64_t products = s.out_channels * s.fan_in() * s.out_height() * s.out_width();
  const int64_t slabs = std::clamp<int64_t>(products / kSlabProducts, 1, out.out_height());
  run_tasks(host, s.batch * slabs, [&](int64_t task) {
    const int64_t image = task / slabs, slab = task % slabs;
    rows.make(run, image, x + image * s.channels * s.height * s.width, slab * out.out_height() / slabs,
              (slab + 1) * out.out_height() / slabs, y + image * s.out_channels * out.out_height() * out.out_width());
  });
}

}  // namespace bnas
