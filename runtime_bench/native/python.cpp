// The Python module: the kernels on numpy arrays, for tests and for measuring. All arguments are checked; what is wrong
// raises ValueError. The GIL is released while a kernel runs, on one thread.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "bound.h"
#include "byte_conv.h"
#include "conv.h"
#include "dispatch.h"
#include "image_conv.h"
#include "shape.h"

namespace nb = nanobind;

namespace bnas {
namespace {

using Array = nb::ndarray<nb::ro, nb::device::cpu>;
using Pair = std::array<int64_t, 2>;
using Pads = std::array<int64_t, 4>;  // top, left, bottom, right

[[noreturn]] void refuse(const std::string& what) { throw nb::value_error(what.c_str()); }

template <typename T>
const T* values(const Array& array, const char* name, const char* type) {
  if (array.dtype() != nb::dtype<T>()) refuse(std::string(name) + " must be " + type);
  int64_t step = 1;
  for (size_t i = array.ndim(); i-- > 0;) {
    const int64_t size = static_cast<int64_t>(array.shape(i));
    if (size > 1 && array.stride(i) != step) refuse(std::string(name) + " must be contiguous");
    step *= size;
  }
  return static_cast<const T*>(array.data());
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

std::vector<int64_t> shape_of(const Array& array) {
  std::vector<int64_t> shape(array.ndim());
  for (size_t i = 0; i < shape.size(); ++i) shape[i] = static_cast<int64_t>(array.shape(i));
  return shape;
}

void expect_rank4(const Array& array, const char* name) {
  if (array.ndim() != 4) refuse(std::string(name) + " must have 4 axes, has " + std::to_string(array.ndim()));
}

void expect_shape(const Array& array, const char* name, const std::vector<int64_t>& wanted) {
  const std::vector<int64_t> found = shape_of(array);
  if (found != wanted) refuse(std::string(name) + " must be " + shape_text(wanted) + ", is " + shape_text(found));
}

// `array` as one value for all or one a channel; `neutral` if there is none.
PerChannel per_channel(const std::optional<Array>& array, const char* name, int64_t channels, const float* neutral) {
  if (!array) return {neutral, 1};
  const float* data = values<float>(*array, name, "float32");
  const int64_t count = static_cast<int64_t>(array->size());
  if (count != 1 && count != channels) {
    refuse(std::string(name) + " must have 1 or " + std::to_string(channels) + " values, has " + std::to_string(count));
  }
  return {data, count};
}

template <typename Shape>
void expect_valid(const Shape& shape) {
  const std::string error = check(shape);
  if (!error.empty()) refuse(error);
}

template <typename T>
struct Result {
  explicit Result(std::vector<int64_t> sizes) : shape(std::move(sizes)) {
    int64_t count = 1;
    for (int64_t size : shape) count *= size;
    data.reset(new T[static_cast<size_t>(count)]);
  }

  nb::ndarray<nb::numpy, T> give() {
    std::vector<size_t> sizes(shape.begin(), shape.end());
    T* values = data.release();
    const nb::capsule owner(values, [](void* p) noexcept { delete[] static_cast<T*>(p); });
    return nb::ndarray<nb::numpy, T>(values, sizes.size(), sizes.data(), owner);
  }

  std::vector<int64_t> shape;
  std::unique_ptr<T[]> data;
};

struct Window {
  Pair strides, dilations;
  Pads pads;
  int64_t groups;
};

// Not checked yet. image: [N, ., H, W].
ConvShape window_shape(const std::vector<int64_t>& image, int64_t channels, int64_t out_channels, int64_t kernel_h,
                       int64_t kernel_w, const Window& window) {
  ConvShape s;
  s.batch = image[0], s.channels = channels, s.height = image[2], s.width = image[3];
  s.out_channels = out_channels, s.kernel_h = kernel_h, s.kernel_w = kernel_w;
  s.groups = window.groups;
  s.stride_h = window.strides[0], s.stride_w = window.strides[1];
  s.dilation_h = window.dilations[0], s.dilation_w = window.dilations[1];
  s.pad_top = window.pads[0], s.pad_left = window.pads[1];
  s.pad_bottom = window.pads[2], s.pad_right = window.pads[3];
  return s;
}

// The convolution of x [N, channels or words, H, W] with w_packed, checked.
ConvShape conv_shape(const Array& x, int64_t channels, const Array& w_packed, const Window& window) {
  expect_rank4(x, "x");
  expect_rank4(w_packed, "w_packed");
  const std::vector<int64_t> weights = shape_of(w_packed);
  const ConvShape s = window_shape(shape_of(x), channels, weights[0], weights[1], weights[2], window);
  expect_valid(s);
  expect_shape(w_packed, "w_packed", {s.out_channels, s.kernel_h, s.kernel_w, ceil_div(s.group_channels(), 8)});
  return s;
}

// What follows the dot products; absent parts are neutral.
struct Epilogue {
  const std::optional<Array>&scale, &bias, &residual, &slope, &act_shift_in, &act_shift_out;
};

// run(conv, affine, y) is called without the GIL. y begins as the residual, so all of these run in place.
template <typename Run>
nb::ndarray<nb::numpy, float> conv_to_float(const std::string& isa, const ConvShape& s, const Array& w_packed,
                                            const Epilogue& epilogue, const Run& run) {
  static constexpr float kZero = 0, kOne = 1;
  const uint8_t* weights = values<uint8_t>(w_packed, "w_packed", "uint8");
  Affine affine{};
  affine.scale = per_channel(epilogue.scale, "scale", s.out_channels, &kOne);
  affine.bias = per_channel(epilogue.bias, "bias", s.out_channels, &kZero);
  affine.slope = per_channel(epilogue.slope, "slope", s.out_channels, &kOne);
  affine.shift_in = per_channel(epilogue.act_shift_in, "act_shift_in", s.out_channels, &kZero);
  affine.shift_out = per_channel(epilogue.act_shift_out, "act_shift_out", s.out_channels, &kZero);
  Result<float> y({s.batch, s.out_channels, s.out_height(), s.out_width()});
  if (epilogue.residual) {
    const float* data = values<float>(*epilogue.residual, "residual", "float32");
    if (epilogue.residual->size() == 1) {
      affine.residual_value = *data;
    } else {
      expect_shape(*epilogue.residual, "residual", y.shape);
      affine.residual = std::copy(data, data + epilogue.residual->size(), y.data.get()) - epilogue.residual->size();
    }
  }
  const Path& way = path(isa);
  {
    const nb::gil_scoped_release released;
    run(BinaryConv(s, weights, way), affine, y.data.get());
  }
  return y.give();
}

nb::ndarray<nb::numpy, float> conv(const std::string& isa, const Array& x, const Array& w_packed, Pair strides,
                                   Pads pads, Pair dilations, int64_t groups, const std::optional<Array>& shift,
                                   const std::optional<Array>& scale, const std::optional<Array>& bias,
                                   const std::optional<Array>& residual, const std::optional<Array>& slope,
                                   const std::optional<Array>& act_shift_in,
                                   const std::optional<Array>& act_shift_out) {
  static constexpr float kZero = 0;
  expect_rank4(x, "x");
  const ConvShape s = conv_shape(x, static_cast<int64_t>(x.shape(1)), w_packed, {strides, dilations, pads, groups});
  const float* image = values<float>(x, "x", "float32");
  const PerChannel threshold = per_channel(shift, "shift", s.channels, &kZero);
  const bool skips =
      residual && residual->size() > 1 && residual->data() == x.data() && shape_of(*residual) == shape_of(x);
  return conv_to_float(isa, s, w_packed, {scale, bias, residual, slope, act_shift_in, act_shift_out},
                       [&](const BinaryConv& conv, const Affine& affine, float* y) {
                         conv.run(s, skips ? y : image, threshold, affine, y, Host{});
                       });
}

nb::ndarray<nb::numpy, float> conv_from_bits(const std::string& isa, const Array& x, int64_t channels,
                                             const Array& w_packed, Pair strides, Pads pads, Pair dilations,
                                             int64_t groups, const std::optional<Array>& scale,
                                             const std::optional<Array>& bias, const std::optional<Array>& residual,
                                             const std::optional<Array>& slope,
                                             const std::optional<Array>& act_shift_in,
                                             const std::optional<Array>& act_shift_out) {
  const ConvShape s = conv_shape(x, channels, w_packed, {strides, dilations, pads, groups});
  expect_shape(x, "x", {s.batch, words_of(s.channels), s.height, s.width});
  const uint32_t* image = values<uint32_t>(x, "x", "uint32");
  return conv_to_float(
      isa, s, w_packed, {scale, bias, residual, slope, act_shift_in, act_shift_out},
      [&](const BinaryConv& conv, const Affine& affine, float* y) { conv.run_from_bits(s, image, affine, y, Host{}); });
}

nb::ndarray<nb::numpy, uint32_t> conv_bits(const std::string& isa, const Array& x, int64_t channels,
                                           const Array& w_packed, const Array& threshold, Pair strides, Pads pads,
                                           Pair dilations, int64_t groups) {
  const ConvShape s = conv_shape(x, channels, w_packed, {strides, dilations, pads, groups});
  expect_shape(x, "x", {s.batch, words_of(s.channels), s.height, s.width});
  const uint32_t* image = values<uint32_t>(x, "x", "uint32");
  const uint8_t* weights = values<uint8_t>(w_packed, "w_packed", "uint8");
  const int32_t* limits = values<int32_t>(threshold, "threshold", "int32");
  if (static_cast<int64_t>(threshold.size()) != s.out_channels) {
    refuse("threshold must have " + std::to_string(s.out_channels) + " values");
  }
  const Path& way = path(isa);
  Result<uint32_t> y({s.batch, words_of(s.out_channels), s.out_height(), s.out_width()});
  {
    const nb::gil_scoped_release released;
    BinaryConv(s, weights, way).run_bits(s, image, limits, y.data.get(), Host{});
  }
  return y.give();
}

nb::ndarray<nb::numpy, float> byte_conv(const std::string& isa, const Array& x, const Array& w, float x_scale,
                                        int64_t x_zero, Pair strides, Pads pads, Pair dilations, int64_t groups,
                                        const std::optional<Array>& scale, const std::optional<Array>& bias,
                                        const std::optional<Array>& slope, const std::optional<Array>& act_shift_out,
                                        float y_scale, int64_t y_zero) {
  static constexpr float kZero = 0, kOne = 1;
  expect_rank4(x, "x");
  expect_rank4(w, "w");
  const std::vector<int64_t> image = shape_of(x), weights = shape_of(w);
  const ConvShape s =
      window_shape(image, image[1], weights[0], weights[2], weights[3], {strides, dilations, pads, groups});
  const std::string error = check_bytes(s);
  if (!error.empty()) refuse(error);
  expect_shape(w, "w", {s.out_channels, s.group_channels(), s.kernel_h, s.kernel_w});
  const auto levels = [](float of, int64_t zero, const char* name, bool may_be_none) {
    if (zero < 0 || zero > 255) refuse(std::string(name) + "_zero must be from 0 to 255");
    const Levels found{of, static_cast<int32_t>(zero)};
    const std::string wrong = check(found, may_be_none);
    if (!wrong.empty()) refuse(std::string(name) + "_scale " + wrong);
    return found;
  };
  const Levels in = levels(x_scale, x_zero, "x", false);
  const ByteAffine affine{
      per_channel(scale, "scale", s.out_channels, &kOne), per_channel(bias, "bias", s.out_channels, &kZero),
      per_channel(slope, "slope", s.out_channels, &kOne),
      per_channel(act_shift_out, "act_shift_out", s.out_channels, &kZero), levels(y_scale, y_zero, "y", true)};
  const float* pixels = values<float>(x, "x", "float32");
  const int8_t* integers = values<int8_t>(w, "w", "int8");
  const Path& way = path(isa);
  Result<float> y({s.batch, s.out_channels, s.out_height(), s.out_width()});
  {
    const nb::gil_scoped_release released;
    ByteConv(s, integers, way).run(s, pixels, in, affine, y.data.get(), Host{});
  }
  return y.give();
}

nb::ndarray<nb::numpy, float> image_conv(const std::string& isa, const Array& x, const Array& w, Pair strides,
                                         Pads pads, Pair pool_kernel, Pair pool_strides, Pads pool_pads,
                                         const std::optional<Array>& bias, const std::optional<Array>& slope,
                                         const std::optional<Array>& act_shift_out) {
  static constexpr float kZero = 0, kOne = 1;
  expect_rank4(x, "x");
  expect_rank4(w, "w");
  const std::vector<int64_t> image = shape_of(x), weights = shape_of(w);
  const ConvShape s = window_shape(image, image[1], weights[0], weights[2], weights[3], {strides, {1, 1}, pads, 1});
  const ImagePool pool{pool_kernel[0], pool_kernel[1], pool_strides[0], pool_strides[1],
                       pool_pads[0],   pool_pads[1],   pool_pads[2],    pool_pads[3]};
  const std::string error = check(s, pool);
  if (!error.empty()) refuse(error);
  expect_shape(w, "w", {s.out_channels, s.channels, s.kernel_h, s.kernel_w});
  const ImageAffine affine{per_channel(bias, "bias", s.out_channels, &kZero),
                           per_channel(slope, "slope", s.out_channels, &kOne),
                           per_channel(act_shift_out, "act_shift_out", s.out_channels, &kZero)};
  const float *pixels = values<float>(x, "x", "float32"), *floats = values<float>(w, "w", "float32");
  const Path& way = path(isa);
  const PoolShape out = pool.over(s);
  Result<float> y({s.batch, s.out_channels, out.out_height(), out.out_width()});
  {
    const nb::gil_scoped_release released;
    ImageConv(s, floats, way).run(s, pool, pixels, affine, y.data.get(), Host{});
  }
  return y.give();
}

nb::ndarray<nb::numpy, uint32_t> pack(const std::string& isa, const Array& x, const std::optional<Array>& shift) {
  static constexpr float kZero = 0;
  expect_rank4(x, "x");
  const std::vector<int64_t> sizes = shape_of(x);
  ConvShape s;  // of a 1x1 convolution over x, for the limits of sizes
  s.batch = sizes[0], s.channels = sizes[1], s.height = sizes[2], s.width = sizes[3], s.out_channels = 1;
  expect_valid(s);
  const float* image = values<float>(x, "x", "float32");
  const PerChannel threshold = per_channel(shift, "shift", s.channels, &kZero);
  const Path& way = path(isa);
  Result<uint32_t> bits({s.batch, words_of(s.channels), s.height, s.width});
  {
    const nb::gil_scoped_release released;
    pack_signs(way, s.batch, s.channels, s.height * s.width, image, threshold, bits.data.get(), Host{});
  }
  return bits.give();
}

nb::ndarray<nb::numpy, uint32_t> max_pool(const Array& x, Pair kernel, Pair strides, Pads pads) {
  expect_rank4(x, "x");
  const std::vector<int64_t> sizes = shape_of(x);
  PoolShape s;
  s.batch = sizes[0], s.words = sizes[1], s.height = sizes[2], s.width = sizes[3];
  s.kernel_h = kernel[0], s.kernel_w = kernel[1], s.stride_h = strides[0], s.stride_w = strides[1];
  s.pad_top = pads[0], s.pad_left = pads[1], s.pad_bottom = pads[2], s.pad_right = pads[3];
  expect_valid(s);
  const uint32_t* image = values<uint32_t>(x, "x", "uint32");
  Result<uint32_t> y({s.batch, s.words, s.out_height(), s.out_width()});
  {
    const nb::gil_scoped_release released;
    max_pool_bits(s, image, y.data.get(), Host{});
  }
  return y.give();
}

std::vector<std::string> path_names() {
  std::vector<std::string> names;
  for (const Path& known : paths()) names.push_back(known.name);
  return names;
}

double bound(const std::string& isa, double seconds) {
  const Path& way = path(isa);
  if (!way.isa) refuse(std::string(way.name) + " has no bound: it does not count with xor and popcount");
  if (!(seconds > 0 && seconds <= 60)) refuse("seconds must be above 0 and at most 60");
  const nb::gil_scoped_release released;
  return bound_gmacs(way, seconds);
}

}  // namespace

NB_MODULE(_native, m) {
  using namespace nb::literals;
  static const Pair kOnes = {1, 1};
  static const Pads kNone = {0, 0, 0, 0};
  m.doc() = "The native kernels on numpy arrays. `isa` is a name from paths(), or '' for the fastest.";
  m.attr("version") = BNAS_VERSION;
  m.def("paths", &path_names, "Names of the paths that this processor can run, the slowest first.");
  m.def(
      "selected", [] { return std::string(selected_path().name); },
      "The path that BNAS_ISA names, else the fastest. ValueError if this processor does not have it.");
  m.def("conv", &conv, "isa"_a, "x"_a, "w_packed"_a, nb::kw_only(), "strides"_a = kOnes, "pads"_a = kNone,
        "dilations"_a = kOnes, "groups"_a = 1, "shift"_a = nb::none(), "scale"_a = nb::none(), "bias"_a = nb::none(),
        "residual"_a = nb::none(), "slope"_a = nb::none(), "act_shift_in"_a = nb::none(),
        "act_shift_out"_a = nb::none(),
        "BinaryConv2d: x float32 [N, C, H, W], w_packed uint8 [O, kh, kw, ceil(C / groups / 8)] -> float32.\n\n"
        "pads: top, left, bottom, right. Of the float32 rest, None is neutral, one value stands for all channels.\n"
        "With x itself as residual, BinaryConv2dSkip, in place.");
  m.def("conv_from_bits", &conv_from_bits, "isa"_a, "x"_a, "channels"_a, "w_packed"_a, nb::kw_only(),
        "strides"_a = kOnes, "pads"_a = kNone, "dilations"_a = kOnes, "groups"_a = 1, "scale"_a = nb::none(),
        "bias"_a = nb::none(), "residual"_a = nb::none(), "slope"_a = nb::none(), "act_shift_in"_a = nb::none(),
        "act_shift_out"_a = nb::none(),
        "BinaryConv2dFromBits: as conv, with x uint32 [N, ceil(channels / 32), H, W] -> float32.");
  m.def("conv_bits", &conv_bits, "isa"_a, "x"_a, "channels"_a, "w_packed"_a, "threshold"_a, nb::kw_only(),
        "strides"_a = kOnes, "pads"_a = kNone, "dilations"_a = kOnes, "groups"_a = 1,
        "BinaryConv2dBits: x uint32 [N, ceil(channels / 32), H, W], threshold int32 [O] -> uint32.");
  m.def("byte_conv", &byte_conv, "isa"_a, "x"_a, "w"_a, "x_scale"_a, "x_zero"_a, nb::kw_only(), "strides"_a = kOnes,
        "pads"_a = kNone, "dilations"_a = kOnes, "groups"_a = 1, "scale"_a = nb::none(), "bias"_a = nb::none(),
        "slope"_a = nb::none(), "act_shift_out"_a = nb::none(), "y_scale"_a = 0.0f, "y_zero"_a = 0,
        "ByteConv2d: x float32 [N, C, H, W], w int8 [O, C / groups, kh, kw] -> float32. y_scale 0: not rounded.");
  m.def("image_conv", &image_conv, "isa"_a, "x"_a, "w"_a, nb::kw_only(), "strides"_a = kOnes, "pads"_a = kNone,
        "pool_kernel"_a = kOnes, "pool_strides"_a = kOnes, "pool_pads"_a = kNone, "bias"_a = nb::none(),
        "slope"_a = nb::none(), "act_shift_out"_a = nb::none(),
        "ImageConv2d: x float32 [N, C, H, W], w float32 [O, C, kh, kw] -> float32. A pool of 1x1: none.");
  m.def("pack_signs", &pack, "isa"_a, "x"_a, "shift"_a = nb::none(),
        "PackSigns: x float32 [N, C, H, W] -> uint32 [N, ceil(C / 32), H, W].");
  m.def("max_pool_bits", &max_pool, "x"_a, "kernel"_a, nb::kw_only(), "strides"_a = kOnes, "pads"_a = kNone,
        "BinaryMaxPool2d: x uint32 [N, words, H, W] -> uint32 [N, words, Ho, Wo].");
  m.def("bound_gmacs", &bound, "isa"_a, "seconds"_a,
        "10^9 binary multiply-accumulates per second of xor + popcount + add on registers alone, one thread.");
}

}  // namespace bnas
