#include "litert_operators.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <stdexcept>

#include "litert_options.h"
#include "nhwc.h"

namespace bnas::litert {
namespace {

constexpr int64_t kMostElements = int64_t{1} << 31;  // of an output

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

std::string dims_text(const Tensor& tensor) {
  std::string text = "[";
  for (int i = 0; i < tensor.dims->size; ++i) text += (i ? ", " : "") + std::to_string(tensor.dims->data[i]);
  return text + "]";
}

void require_type(const Tensor& tensor, Type type, const char* what) {
  if (tensor.type == type) return;
  refuse(std::string(what) + " has type " + std::to_string(tensor.type) + ", expected " + std::to_string(type));
}

void require_image(const Tensor& tensor, const char* what) {
  if (tensor.dims->size != 4) refuse(std::string(what) + " is " + dims_text(tensor) + ", expected 4 axes");
}

void require_nodes(const Operation& operation, size_t inputs) {
  if (operation.inputs.size() == inputs && operation.outputs.size() == 1) return;
  refuse("it has " + std::to_string(operation.inputs.size()) + " inputs and " +
         std::to_string(operation.outputs.size()) + " outputs, expected " + std::to_string(inputs) + " and 1");
}

// Sizes an output. Whatever writes a tensor calls it, so no constant is ever written.
void resize(Context* context, Tensor& tensor, const std::vector<int64_t>& dims) {
  if (tensor.allocation_type == kReadOnly || tensor.allocation_type == kComputedReadOnly) {
    refuse("the output is a constant of the file");
  }
  int64_t count = 1;
  for (const int64_t size : dims) {
    if (size < 0 || size > std::numeric_limits<int>::max() || (size > 0 && count > kMostElements / size)) {
      refuse("the output is too large");
    }
    count *= size;
  }
  // The context frees it, so it must come from malloc.
  IntArray* array = static_cast<IntArray*>(std::malloc((dims.size() + 1) * sizeof(int)));
  if (!array) throw std::bad_alloc();
  array->size = static_cast<int>(dims.size());
  std::transform(dims.begin(), dims.end(), array->data, [](int64_t size) { return static_cast<int>(size); });
  if (context->resize_tensor(context, &tensor, array) != kOk) refuse("the output cannot be resized");
}

// The data of a tensor that is now as large as it was when things were prepared.
template <typename T>
T* data_of(Tensor& tensor, int64_t count, const char* what) {
  if (tensor.bytes != static_cast<size_t>(count) * sizeof(T) || (count > 0 && !tensor.data.raw)) {
    refuse(std::string(what) + " holds " + std::to_string(tensor.bytes) + " bytes, expected " +
           std::to_string(static_cast<size_t>(count) * sizeof(T)));
  }
  return static_cast<T*>(tensor.data.raw);
}

using Options = std::map<std::string, int64_t>;

int64_t option(const Options& options, const char* name, int64_t least, int64_t most) {
  const auto found = options.find(name);
  if (found == options.end()) refuse(std::string("option ") + name + " is missing");
  if (found->second >= least && found->second <= most) return found->second;
  refuse(std::string("option ") + name + " is " + std::to_string(found->second) + ", expected " +
         std::to_string(least) + " to " + std::to_string(most));
}

constexpr int64_t kMostSize = int64_t{1} << 20;

// A packed image with its pads is at most that many times as large as without, or has at most that many words (16 MiB):
// a small file with a large dilation would take gigabytes.
constexpr int64_t kMostPadded = 64, kFewWords = int64_t{1} << 22;

// Pads before and after one axis. same: as many outputs as strides begin in `size`, else only windows that lie inside.
void set_pads(bool same, int64_t size, int64_t kernel, int64_t stride, int64_t dilation, int64_t* before,
              int64_t* after) {
  const int64_t extent = (kernel - 1) * dilation + 1, needed = (ceil_div(size, stride) - 1) * stride + extent;
  const int64_t total = same ? std::max<int64_t>(needed - size, 0) : 0;
  *before = total / 2;
  *after = total - total / 2;
}

class Conv : public Operator {
 public:
  Conv(Unit unit, const Path& path) : unit_(std::move(unit)), path_(path) {
    require_nodes(unit_.conv, 5);
    const Options options = parse_options(unit_.conv.options, unit_.conv.options_size);
    shape_.channels = option(options, "channels_in", 1, kMostSize);
    shape_.stride_h = option(options, "stride_height", 1, kMostSize);
    shape_.stride_w = option(options, "stride_width", 1, kMostSize);
    shape_.dilation_h = option(options, "dilation_height_factor", 1, kMostSize);
    shape_.dilation_w = option(options, "dilation_width_factor", 1, kMostSize);
    same_ = option(options, "padding", 0, 1) == 0;
    zero_pads_ = option(options, "pad_values", 0, 1) == 0 && same_;
    activation_ = static_cast<int>(option(options, "fused_activation_function", 0, 3));
  }

  void prepare(Context* context) override {
    Tensor& x = tensor_at(context, unit_.input, "x");
    Tensor& y = tensor_at(context, unit_.output, "y");
    Tensor& made = tensor_at(context, unit_.conv.outputs[0], "y");
    require_image(x, "x");
    require_type(x, unit_.from_values ? kFloat32 : kInt32, "x");
    const Tensor& filter = constant_at(context, unit_.conv.inputs[1], kInt32, "the filter");
    require_image(filter, "the filter");
    output_ = made.type;
    set_shape(x, filter);
    if (!conv_) read_constants(context, filter, made);
    require_type(y, output_, "y");
    const int64_t last = output_ == kInt32 ? words_of(shape_.out_channels) : shape_.out_channels;
    made_ = sum_ = {shape_.batch, shape_.out_height(), shape_.out_width(), last};
    if (unit_.residual >= 0) {
      const Tensor& residual = tensor_at(context, unit_.residual, "the residual");
      require_type(residual, kFloat32, "the residual");
      set_sum(residual);
    }
    resize(context, y, {sum_.begin(), sum_.end()});
  }

  void invoke(Context* context, const Host& host) override {
    Tensor& input = tensor_at(context, unit_.input, "x");
    Tensor& output = tensor_at(context, unit_.output, "y");
    const int64_t pixels = shape_.batch * shape_.height * shape_.width;
    const int64_t positions = shape_.batch * shape_.out_height() * shape_.out_width();
    NhwcImage x{};
    if (unit_.from_values) {
      x.values = data_of<float>(input, pixels * shape_.channels, "x");
      x.shift = shift_.empty() ? nullptr : shift_.data();
    } else {
      x.bits = data_of<uint32_t>(input, pixels * words_of(shape_.channels), "x");
    }
    const int64_t count = positions * shape_.out_channels, sum_count = count_of(sum_);
    if (output_ == kInt32) {
      uint32_t* y = data_of<uint32_t>(output, positions * words_of(shape_.out_channels), "y");
      if (positions) conv_->run_bits(shape_, x, limits_.data(), y, host);
    } else if (output_ == kInt8) {
      int8_t* y = data_of<int8_t>(output, count, "y");
      if (positions) conv_->run_int8(shape_, x, {low_, high_, scale_.data(), bias_.data()}, y, host);
    } else {
      NhwcAffine affine{};
      affine.low = static_cast<float>(low_);
      affine.high = static_cast<float>(high_);
      affine.scale = scale_.data();
      affine.bias = bias_.data();
      float* y = data_of<float>(output, sum_count, "y");
      const float* residual = nullptr;
      if (unit_.residual >= 0) {
        Tensor& added = tensor_at(context, unit_.residual, "the residual");
        residual = data_of<float>(added, count_of(residual_), "the residual");
      }
      if (made_ != sum_ || (residual && residual_ != sum_)) {
        std::vector<float> made(static_cast<size_t>(count));
        if (positions) conv_->run(shape_, x, affine, made.data(), host);
        return add_apart(made.data(), residual, y);
      }
      affine.residual = residual;
      affine.shift_in = shift_in_.empty() ? nullptr : shift_in_.data();
      affine.slope = slope_.empty() ? nullptr : slope_.data();
      affine.shift_out = shift_out_.empty() ? nullptr : shift_out_.data();
      if (positions) conv_->run(shape_, x, affine, y, host);
    }
  }

 private:
  using Dims = std::array<int64_t, 4>;

  static int64_t count_of(const Dims& dims) { return dims[0] * dims[1] * dims[2] * dims[3]; }

  // What the convolution and the residual are as a sum. They are of one size when a unit is made; with other sizes of
  // the network's inputs, one of them may have to be repeated along some axes, as for an operator of its own.
  void set_sum(const Tensor& residual) {
    const int axes = residual.dims->size;
    residual_ = {1, 1, 1, 1};
    bool fits = axes <= 4;
    for (int i = 0; fits && i < axes; ++i) residual_[static_cast<size_t>(4 - axes + i)] = residual.dims->data[i];
    for (size_t i = 0; i < 4; ++i) {
      sum_[i] = made_[i] == 1 ? residual_[i] : made_[i];
      fits = fits && (residual_[i] == sum_[i] || residual_[i] == 1);
    }
    if (fits && sum_[3] == shape_.out_channels) return;
    refuse("the residual is " + dims_text(residual) + ", which does not go with the convolution's [" +
           std::to_string(made_[0]) + ", " + std::to_string(made_[1]) + ", " + std::to_string(made_[2]) + ", " +
           std::to_string(made_[3]) + "]");
  }

  // What a unit does behind its convolution, where one of the two that are added is repeated.
  void add_apart(const float* made, const float* residual, float* y) const {
    const auto row_at = [](const Dims& dims, int64_t n, int64_t i, int64_t j) {
      const auto along = [&](size_t axis, int64_t at) { return dims[axis] == 1 ? 0 : at; };
      return ((along(0, n) * dims[1] + along(1, i)) * dims[2] + along(2, j)) * dims[3];
    };
    for (int64_t n = 0; n < sum_[0]; ++n) {
      for (int64_t i = 0; i < sum_[1]; ++i) {
        for (int64_t j = 0; j < sum_[2]; ++j) {
          const float* one = made + row_at(made_, n, i, j);
          const float* other = residual + row_at(residual_, n, i, j);
          for (size_t c = 0; c < static_cast<size_t>(sum_[3]); ++c) {
            float value = one[c] + other[residual_[3] == 1 ? 0 : c];
            if (!shift_in_.empty()) value -= shift_in_[c];
            if (!slope_.empty() && value < 0) value *= slope_[c];
            if (!shift_out_.empty()) value += shift_out_[c];
            *y++ = value;
          }
        }
      }
    }
  }

  void set_shape(const Tensor& x, const Tensor& filter) {
    shape_.batch = x.dims->data[0];
    shape_.height = x.dims->data[1];
    shape_.width = x.dims->data[2];
    shape_.out_channels = filter.dims->data[0];
    shape_.kernel_h = filter.dims->data[1];
    shape_.kernel_w = filter.dims->data[2];
    const int64_t words = words_of(shape_.channels), group_words = filter.dims->data[3];
    const int64_t last = unit_.from_values ? shape_.channels : words;
    if (x.dims->data[3] != last) {
      refuse("x is " + dims_text(x) + ", expected " + std::to_string(last) + " in the last axis");
    }
    if (group_words < 1 || words % group_words) {
      refuse("the filter is " + dims_text(filter) + ", expected parts of " + std::to_string(words) + " words");
    }
    shape_.groups = words / group_words;
    if (shape_.groups > 1 && shape_.channels % (shape_.groups * kWordBits)) {
      refuse("the channels of a group do not fill whole words of 32");
    }
    shape_.pad_top = shape_.pad_left = shape_.pad_bottom = shape_.pad_right = 0;
    if (shape_.height >= 1 && shape_.height <= kMostSize && shape_.width >= 1 && shape_.width <= kMostSize &&
        shape_.kernel_h >= 1 && shape_.kernel_h <= kMostSize && shape_.kernel_w >= 1 && shape_.kernel_w <= kMostSize) {
      set_pads(same_, shape_.height, shape_.kernel_h, shape_.stride_h, shape_.dilation_h, &shape_.pad_top,
               &shape_.pad_bottom);
      set_pads(same_, shape_.width, shape_.kernel_w, shape_.stride_w, shape_.dilation_w, &shape_.pad_left,
               &shape_.pad_right);
    }
    const std::string error = check(shape_);
    if (!error.empty()) refuse(error);
    const int64_t rows = shape_.height + shape_.pad_top + shape_.pad_bottom;
    const int64_t columns = shape_.width + shape_.pad_left + shape_.pad_right;
    const int64_t padded = shape_.batch * words * rows * columns;  // check() has bounded it
    if (padded > kFewWords && padded / kMostPadded > shape_.batch * words * shape_.height * shape_.width) {
      refuse("the padded image of " + std::to_string(rows) + " x " + std::to_string(columns) + " is more than " +
             std::to_string(kMostPadded) + " times as large as the image of " + std::to_string(shape_.height) + " x " +
             std::to_string(shape_.width) + "; give the convolution a smaller dilation");
    }
  }

  void read_constants(const Context* context, const Tensor& filter, const Tensor& made) {
    const int64_t outputs = shape_.out_channels, fan_in = shape_.fan_in();
    low_ = -static_cast<int32_t>(fan_in);
    high_ = static_cast<int32_t>(fan_in);
    if (activation_ == kReluActivation || activation_ == kRelu6Activation) low_ = 0;
    if (activation_ == kRelu6Activation) high_ = std::min<int32_t>(high_, 6);
    if (activation_ == kRelu1Activation) low_ = std::max<int32_t>(low_, -1), high_ = std::min<int32_t>(high_, 1);
    if (output_ == kInt32) {
      const Tensor& limits = constant_at(context, unit_.conv.inputs[4], kInt32, "the threshold");
      if (element_count(limits) != outputs) refuse("the threshold is " + dims_text(limits) + ", not one per channel");
      for (int64_t c = 0; c < outputs; ++c) {  // counts are below 2^23
        limits_.push_back(std::clamp(limits.data.i32[c], -(1 << 24), 1 << 24));
      }
    } else if (output_ == kFloat32 || output_ == kInt8) {
      scale_ = channels(context, unit_.conv.inputs[2], "the multiplier");
      bias_ = channels(context, unit_.conv.inputs[3], "the bias");
    } else {
      refuse("y has type " + std::to_string(made.type) + ", expected float32, int8 or int32");
    }
    if (output_ == kInt8) {
      // The whole way from a count to steps of the output in one multiplication and addition.
      const double step = made.params.scale, zero = made.params.zero_point;
      if (!(step > 0)) refuse("y has no quantization");
      for (size_t c = 0; c < scale_.size(); ++c) {
        const double scale = scale_[c], bias = bias_[c];
        scale_[c] = static_cast<float>(-scale / step);
        bias_[c] = static_cast<float>((bias + static_cast<double>(fan_in) * scale) / step + zero);
      }
    }
    shift_ = optional(context, unit_.shift, shape_.channels, unit_.negate_shift, "the shift");
    shift_in_ = optional(context, unit_.shift_in, outputs, unit_.negate_shift_in, "the shift");
    slope_ = optional(context, unit_.slope, outputs, false, "the slope");
    if (unit_.relu) slope_.assign(static_cast<size_t>(outputs), 0.0f);
    shift_out_ = optional(context, unit_.shift_out, outputs, unit_.negate_shift_out, "the shift");
    conv_ = std::make_unique<NhwcConv>(shape_, reinterpret_cast<const uint32_t*>(filter.data.i32), zero_pads_, path_);
  }

  std::vector<float> channels(const Context* context, int index, const char* what) const {
    const Tensor& tensor = constant_at(context, index, kFloat32, what);
    if (element_count(tensor) != shape_.out_channels) {
      refuse(std::string(what) + " is " + dims_text(tensor) + ", expected " + std::to_string(shape_.out_channels));
    }
    return std::vector<float>(tensor.data.f32, tensor.data.f32 + shape_.out_channels);
  }

  // A constant of one value or one per channel as one per channel; none if index is -1.
  static std::vector<float> optional(const Context* context, int index, int64_t channels, bool negate,
                                     const char* what) {
    if (index < 0) return {};
    const Tensor& tensor = constant_at(context, index, kFloat32, what);
    const int64_t count = element_count(tensor);
    if (count != 1 && count != channels) refuse(std::string(what) + " is " + dims_text(tensor));
    std::vector<float> values;
    for (int64_t c = 0; c < channels; ++c) {
      const float value = tensor.data.f32[count == 1 ? 0 : c];
      values.push_back(negate ? -value : value);
    }
    return values;
  }

  Unit unit_;
  Path path_;
  ConvShape shape_;
  Dims made_{}, residual_{}, sum_{};  // of the convolution, the residual and their sum
  bool same_ = true, zero_pads_ = false;
  int activation_ = kNoActivation;
  Type output_ = kFloat32;
  int32_t low_ = 0, high_ = 0;
  std::vector<float> scale_, bias_, shift_, shift_in_, slope_, shift_out_;
  std::vector<int32_t> limits_;
  std::unique_ptr<NhwcConv> conv_;
};

// An operator with one input and one output.
class OneToOne : public Operator {
 public:
  explicit OneToOne(const Operation& operation) {
    require_nodes(operation, 1);
    input_ = operation.inputs[0];
    output_ = operation.outputs[0];
  }

 protected:
  Tensor& input(const Context* context) const { return tensor_at(context, input_, "x"); }
  Tensor& output(const Context* context) const { return tensor_at(context, output_, "y"); }

  // [..., channels] as rows of channels.
  void set_rows(const Tensor& tensor) {
    if (tensor.dims->size < 1) refuse("x is a single value");
    channels_ = tensor.dims->data[tensor.dims->size - 1];
    const int64_t count = element_count(tensor);
    if (count < 0 || channels_ < 1) refuse("x is " + dims_text(tensor) + ", which is too large or empty");
    rows_ = count / channels_;
  }

  int64_t rows_ = 0, channels_ = 1;

 private:
  int input_, output_;
};

class Quantize : public OneToOne {
 public:
  Quantize(const Operation& operation, const Path& path) : OneToOne(operation), path_(path) {}

  void prepare(Context* context) override {
    const Tensor& x = input(context);
    Tensor& y = output(context);
    if (x.type != kFloat32 && x.type != kInt8 && x.type != kBool) {
      refuse("x has type " + std::to_string(x.type) + ", expected float32, int8 or bool");
    }
    require_type(y, kInt32, "y");
    set_rows(x);
    std::vector<int64_t> dims(x.dims->data, x.dims->data + x.dims->size);
    dims.back() = words_of(channels_);
    resize(context, y, dims);
  }

  void invoke(Context* context, const Host& host) override {
    Tensor& x = input(context);
    uint32_t* y = data_of<uint32_t>(output(context), rows_ * words_of(channels_), "y");
    const int64_t count = rows_ * channels_;
    if (x.type == kFloat32) return nhwc_pack(path_, rows_, channels_, data_of<float>(x, count, "x"), y, host);
    // A bool is negative if it is false.
    nhwc_pack(rows_, channels_, data_of<int8_t>(x, count, "x"), x.type == kInt8 ? x.params.zero_point : 1, y, host);
  }

 private:
  Path path_;
};

class Dequantize : public OneToOne {
 public:
  explicit Dequantize(const Operation& operation) : OneToOne(operation) {}

  void prepare(Context* context) override {
    const Tensor& x = input(context);
    Tensor& y = output(context);
    require_type(x, kInt32, "x");
    if (y.type != kFloat32 && y.type != kInt8 && y.type != kBool) {
      refuse("y has type " + std::to_string(y.type) + ", expected float32, int8 or bool");
    }
    // How many channels there are only the output tells; all other axes may change.
    set_rows(y);
    const int axes = x.dims->size;
    if (axes != y.dims->size || x.dims->data[axes - 1] != words_of(channels_)) {
      refuse("x is " + dims_text(x) + " and y " + dims_text(y) + ", expected words of 32 channels");
    }
    std::vector<int64_t> dims(x.dims->data, x.dims->data + axes);
    dims.back() = channels_;
    resize(context, y, dims);
    set_rows(output(context));
  }

  void invoke(Context* context, const Host&) override {
    const uint32_t* x = data_of<uint32_t>(input(context), rows_ * words_of(channels_), "x");
    Tensor& y = output(context);
    const int64_t count = rows_ * channels_;
    if (y.type == kFloat32) return nhwc_unpack(rows_, channels_, x, 1.0f, -1.0f, data_of<float>(y, count, "y"));
    int8_t plus = 1, minus = 0;
    if (y.type == kInt8) {
      const double one = std::round(1.0f / y.params.scale), zero = y.params.zero_point;
      if (!(y.params.scale > 0)) refuse("y has no quantization");
      plus = static_cast<int8_t>(std::clamp(zero + one, -128.0, 127.0));
      minus = static_cast<int8_t>(std::clamp(zero - one, -128.0, 127.0));
    }
    nhwc_unpack(rows_, channels_, x, plus, minus, data_of<int8_t>(y, count, "y"));
  }
};

class MaxPool : public OneToOne {
 public:
  explicit MaxPool(const Operation& operation) : OneToOne(operation) {
    const Options options = parse_options(operation.options, operation.options_size);
    shape_.kernel_h = option(options, "filter_height", 1, kMostSize);
    shape_.kernel_w = option(options, "filter_width", 1, kMostSize);
    shape_.stride_h = option(options, "stride_height", 1, kMostSize);
    shape_.stride_w = option(options, "stride_width", 1, kMostSize);
    same_ = option(options, "padding", 0, 1) == 0;
  }

  void prepare(Context* context) override {
    const Tensor& x = input(context);
    Tensor& y = output(context);
    require_image(x, "x");
    require_type(x, kInt32, "x");
    require_type(y, kInt32, "y");
    shape_.batch = x.dims->data[0];
    shape_.height = x.dims->data[1];
    shape_.width = x.dims->data[2];
    shape_.words = x.dims->data[3];
    set_pads(same_, shape_.height, shape_.kernel_h, shape_.stride_h, 1, &shape_.pad_top, &shape_.pad_bottom);
    set_pads(same_, shape_.width, shape_.kernel_w, shape_.stride_w, 1, &shape_.pad_left, &shape_.pad_right);
    const std::string error = check(shape_);
    if (!error.empty()) refuse(error);
    resize(context, y, {shape_.batch, shape_.out_height(), shape_.out_width(), shape_.words});
  }

  void invoke(Context* context, const Host& host) override {
    const int64_t rows = shape_.batch * shape_.words, out_pixels = shape_.out_height() * shape_.out_width();
    const uint32_t* x = data_of<uint32_t>(input(context), rows * shape_.height * shape_.width, "x");
    uint32_t* y = data_of<uint32_t>(output(context), rows * out_pixels, "y");
    nhwc_max_pool(shape_, x, y, host);
  }

 private:
  PoolShape shape_;
  bool same_ = true;
};

}  // namespace

std::unique_ptr<Operator> make_operator(const Context* context, const std::vector<Operation>& operations,
                                        const Path& path) {
  if (operations.size() == 1) {
    const Operation& only = operations[0];
    if (only.name == kQuantize) return std::make_unique<Quantize>(only, path);
    if (only.name == kDequantize) return std::make_unique<Dequantize>(only);
    if (only.name == kMaxPool) return std::make_unique<MaxPool>(only);
  }
  return std::make_unique<Conv>(unit_of(context, operations), path);
}

}  // namespace bnas::litert
