#include "reference.h"

#include <algorithm>
#include <cmath>

namespace bnas::reference {
namespace {

float at(PerChannel values, int64_t channel) { return values.values[values.count == 1 ? 0 : channel]; }

// sum over the window of sign * weight, each +1 or -1; `negative(channel, row, column)` says which pixels are -1.
template <typename Negative>
int64_t dot(const ConvShape& s, const uint8_t* w_packed, int64_t out, int64_t row, int64_t column, Negative negative) {
  const int64_t bytes = ceil_div(s.group_channels(), 8);
  const int64_t first = out / s.group_outputs() * s.group_channels();
  int64_t sum = 0;
  for (int64_t ky = 0; ky < s.kernel_h; ++ky) {
    for (int64_t kx = 0; kx < s.kernel_w; ++kx) {
      const int64_t iy = row * s.stride_h + ky * s.dilation_h - s.pad_top;
      const int64_t ix = column * s.stride_w + kx * s.dilation_w - s.pad_left;
      const bool inside = iy >= 0 && iy < s.height && ix >= 0 && ix < s.width;
      const uint8_t* weights = w_packed + ((out * s.kernel_h + ky) * s.kernel_w + kx) * bytes;
      for (int64_t c = 0; c < s.group_channels(); ++c) {
        const bool minus_weight = weights[c / 8] >> (c % 8) & 1;
        const bool minus_pixel = inside && negative(first + c, iy, ix);  // padding is +1
        sum += minus_weight == minus_pixel ? 1 : -1;
      }
    }
  }
  return sum;
}

// Says which pixels of image n are -1.
auto negative_of(const ConvShape& s, const float* x, PerChannel shift, int64_t n) {
  return [=](int64_t c, int64_t iy, int64_t ix) {
    return x[((n * s.channels + c) * s.height + iy) * s.width + ix] < at(shift, c);
  };
}

auto negative_of(const ConvShape& s, const uint32_t* x, int64_t n) {
  return [=](int64_t c, int64_t iy, int64_t ix) {
    const int64_t word = n * words_of(s.channels) + c / kWordBits;
    return x[(word * s.height + iy) * s.width + ix] >> (c % kWordBits) & 1;
  };
}

template <typename Negative>
void conv_image(const ConvShape& s, const uint8_t* w_packed, int64_t n, const Affine& affine, float* y,
                const Negative& negative) {
  for (int64_t o = 0; o < s.out_channels; ++o) {
    for (int64_t row = 0; row < s.out_height(); ++row) {
      for (int64_t column = 0; column < s.out_width(); ++column) {
        const int64_t i = ((n * s.out_channels + o) * s.out_height() + row) * s.out_width() + column;
        float v = static_cast<float>(dot(s, w_packed, o, row, column, negative));
        v = v * at(affine.scale, o);
        v = v + at(affine.bias, o);
        v = v + (affine.residual ? affine.residual[i] : affine.residual_value);
        v = v - at(affine.shift_in, o);
        v = v < 0 ? v * at(affine.slope, o) : v;
        y[i] = v + at(affine.shift_out, o);
      }
    }
  }
}

}  // namespace

void conv(const ConvShape& s, const uint8_t* w_packed, const float* x, PerChannel shift, const Affine& affine,
          float* y) {
  for (int64_t n = 0; n < s.batch; ++n) conv_image(s, w_packed, n, affine, y, negative_of(s, x, shift, n));
}

void conv_from_bits(const ConvShape& s, const uint8_t* w_packed, const uint32_t* x, const Affine& affine, float* y) {
  for (int64_t n = 0; n < s.batch; ++n) conv_image(s, w_packed, n, affine, y, negative_of(s, x, n));
}

void conv_bits(const ConvShape& s, const uint8_t* w_packed, const uint32_t* x, const int32_t* thresholds, uint32_t* y) {
  const int64_t out_words = words_of(s.out_channels);
  const int64_t out_pixels = s.out_height() * s.out_width();
  for (int64_t n = 0; n < s.batch; ++n) {
    const auto negative = negative_of(s, x, n);
    uint32_t* image = y + n * out_words * out_pixels;
    for (int64_t i = 0; i < out_words * out_pixels; ++i) image[i] = 0;
    for (int64_t o = 0; o < s.out_channels; ++o) {
      for (int64_t row = 0; row < s.out_height(); ++row) {
        for (int64_t column = 0; column < s.out_width(); ++column) {
          const bool minus = dot(s, w_packed, o, row, column, negative) < thresholds[o];
          uint32_t& word = image[o / kWordBits * out_pixels + row * s.out_width() + column];
          word |= static_cast<uint32_t>(minus) << (o % kWordBits);
        }
      }
    }
  }
}

void pack_signs(int64_t batch, int64_t channels, int64_t pixels, const float* x, PerChannel shift, uint32_t* bits) {
  const int64_t words = words_of(channels);
  for (int64_t i = 0; i < batch * words * pixels; ++i) bits[i] = 0;
  for (int64_t n = 0; n < batch; ++n) {
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t p = 0; p < pixels; ++p) {
        const bool minus = x[(n * channels + c) * pixels + p] < at(shift, c);
        bits[(n * words + c / kWordBits) * pixels + p] |= static_cast<uint32_t>(minus) << (c % kWordBits);
      }
    }
  }
}

namespace {

// The whole number of steps that is nearest to v, of those that levels with this zero have; the lowest for NaN. Never
// -0.
float steps_of(float v, int32_t zero) {
  const float steps = std::nearbyint(v) + 0.0f, low = static_cast<float>(-zero), high = static_cast<float>(255 - zero);
  return !(steps > low) ? low : steps < high ? steps : high;
}

}  // namespace

void byte_conv(const ConvShape& s, const int8_t* weights, const float* x, const Levels& levels,
               const ByteAffine& affine, float* y) {
  const auto sum = [&](int64_t n, int64_t out, int64_t row, int64_t column) {
    int64_t total = 0;
    for (int64_t c = 0; c < s.group_channels(); ++c) {
      const int64_t channel = out / s.group_outputs() * s.group_channels() + c;
      for (int64_t ky = 0; ky < s.kernel_h; ++ky) {
        for (int64_t kx = 0; kx < s.kernel_w; ++kx) {
          const int64_t iy = row * s.stride_h + ky * s.dilation_h - s.pad_top;
          const int64_t ix = column * s.stride_w + kx * s.dilation_w - s.pad_left;
          if (iy < 0 || iy >= s.height || ix < 0 || ix >= s.width) continue;
          const float pixel = x[((n * s.channels + channel) * s.height + iy) * s.width + ix];
          const int64_t weight = weights[((out * s.group_channels() + c) * s.kernel_h + ky) * s.kernel_w + kx];
          total += static_cast<int64_t>(steps_of(pixel / levels.scale, levels.zero)) * weight;
        }
      }
    }
    return total;
  };
  for (int64_t n = 0; n < s.batch; ++n) {
    for (int64_t o = 0; o < s.out_channels; ++o) {
      for (int64_t row = 0; row < s.out_height(); ++row) {
        for (int64_t column = 0; column < s.out_width(); ++column) {
          float v = static_cast<float>(sum(n, o, row, column));
          v = v * at(affine.scale, o);
          v = v + at(affine.bias, o);
          v = v < 0 ? v * at(affine.slope, o) : v;
          v = v + at(affine.shift_out, o);
          if (affine.y.scale != 0) v = steps_of(v * (1.0f / affine.y.scale), affine.y.zero) * affine.y.scale;
          *y++ = v;
        }
      }
    }
  }
}

void image_conv(const ConvShape& s, const PoolShape& pool, const float* weights, const float* x,
                const ImageAffine& affine, float* y) {
  const auto value = [&](int64_t n, int64_t out, int64_t row, int64_t column) {
    double sum = 0;
    for (int64_t c = 0; c < s.channels; ++c) {
      for (int64_t ky = 0; ky < s.kernel_h; ++ky) {
        for (int64_t kx = 0; kx < s.kernel_w; ++kx) {
          const int64_t iy = row * s.stride_h + ky - s.pad_top, ix = column * s.stride_w + kx - s.pad_left;
          if (iy < 0 || iy >= s.height || ix < 0 || ix >= s.width) continue;
          const double pixel = x[((n * s.channels + c) * s.height + iy) * s.width + ix];
          sum += pixel * weights[((out * s.channels + c) * s.kernel_h + ky) * s.kernel_w + kx];
        }
      }
    }
    float v = static_cast<float>(sum + at(affine.bias, out));
    v = v < 0 ? v * at(affine.slope, out) : v;
    return v + at(affine.shift_out, out);
  };
  std::vector<float> plane(static_cast<size_t>(pool.height * pool.width));
  for (int64_t n = 0; n < s.batch; ++n) {
    for (int64_t o = 0; o < s.out_channels; ++o) {
      for (int64_t p = 0; p < pool.height * pool.width; ++p) {
        plane[static_cast<size_t>(p)] = value(n, o, p / pool.width, p % pool.width);
      }
      for (int64_t row = 0; row < pool.out_height(); ++row) {
        for (int64_t column = 0; column < pool.out_width(); ++column) {
          const int64_t top = row * pool.stride_h - pool.pad_top, left = column * pool.stride_w - pool.pad_left;
          float largest = -INFINITY;
          for (int64_t iy = std::max<int64_t>(top, 0); iy < std::min(top + pool.kernel_h, pool.height); ++iy) {
            for (int64_t ix = std::max<int64_t>(left, 0); ix < std::min(left + pool.kernel_w, pool.width); ++ix) {
              largest = std::max(largest, plane[static_cast<size_t>(iy * pool.width + ix)]);
            }
          }
          *y++ = largest;
        }
      }
    }
  }
}

}  // namespace bnas::reference
