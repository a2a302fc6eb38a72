// The operators of domain ai.bnas for onnxruntime: RegisterCustomOps is what its register_custom_ops_library calls.
//
// A kernel's attributes, weights and constant parameters are checked and arranged when a session is made; a run checks
// what depends on the image. Whatever does not fit becomes a status that names the node, the value and what was
// expected; nothing is thrown across the border.
#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "bound.h"
#include "byte_conv.h"
#include "conv.h"
#include "dispatch.h"
#include "image_conv.h"
#include "ort_abi.h"
#include "ort_values.h"

namespace bnas::ort {
namespace {

constexpr char kDomain[] = "ai.bnas";
constexpr int64_t kMost = int64_t{1} << 20;  // of any size; the shapes' own checks know more

void require_size(const char* what, int64_t value) {
  if (value >= 1 && value <= kMost) return;
  refuse(std::string(what) + " is " + std::to_string(value) + ", expected 1 to " + std::to_string(kMost));
}

// Attributes -> a shape without batch, height, width and output channels. This one has one group and no dilation.
template <typename Attributes>
ConvShape image_attributes(const Attributes& attributes) {
  const std::vector<int64_t> kernel = integers(attributes, "kernel_shape", 2);
  const std::vector<int64_t> strides = integers(attributes, "strides", 2);
  const std::vector<int64_t> pads = integers(attributes, "pads", 4);
  ConvShape shape;
  shape.channels = integers(attributes, "in_channels", 1)[0];
  require_size("in_channels", shape.channels);
  shape.kernel_h = kernel[0], shape.kernel_w = kernel[1];
  shape.stride_h = strides[0], shape.stride_w = strides[1];
  shape.pad_top = pads[0], shape.pad_left = pads[1], shape.pad_bottom = pads[2], shape.pad_right = pads[3];
  return shape;
}

template <typename Attributes>
ConvShape conv_attributes(const Attributes& attributes) {
  ConvShape shape = image_attributes(attributes);
  const std::vector<int64_t> dilations = integers(attributes, "dilations", 2);
  shape.dilation_h = dilations[0], shape.dilation_w = dilations[1];
  shape.groups = integer(attributes, "group");
  require_size("group", shape.groups);
  shape.channels *= shape.groups;
  return shape;
}

template <typename Attributes>
ImagePool image_pool_attributes(const Attributes& attributes) {
  const std::vector<int64_t> kernel = integers(attributes, "pool_kernel", 2);
  const std::vector<int64_t> strides = integers(attributes, "pool_strides", 2);
  const std::vector<int64_t> pads = integers(attributes, "pool_pads", 4);
  return {kernel[0], kernel[1], strides[0], strides[1], pads[0], pads[1], pads[2], pads[3]};
}

template <typename Attributes>
PoolShape pool_attributes(const Attributes& attributes) {
  const std::vector<int64_t> kernel = integers(attributes, "kernel_shape", 2);
  const std::vector<int64_t> strides = integers(attributes, "strides", 2);
  const std::vector<int64_t> pads = integers(attributes, "pads", 4);
  PoolShape shape;
  shape.kernel_h = kernel[0], shape.kernel_w = kernel[1];
  shape.stride_h = strides[0], shape.stride_w = strides[1];
  shape.pad_top = pads[0], shape.pad_left = pads[1], shape.pad_bottom = pads[2], shape.pad_right = pads[3];
  return shape;
}

void require(const std::string& error) {
  if (!error.empty()) refuse(error);
}

template <typename Shape>
void require_valid(const Shape& shape) {
  require(check(shape));
}

// x [N, planes, H, W] into `shape`.
template <typename Shape>
void set_image(const Tensor& x, int64_t planes, const std::string& what, Shape* shape) {
  if (x.rank != 4) refuse("x is " + x.text() + ", expected 4 axes");
  if (x.dims[1] != planes)
    refuse("x is " + x.text() + ", expected " + std::to_string(planes) + " " + what + " in axis 1");
  shape->batch = x.dims[0];
  shape->height = x.dims[2];
  shape->width = x.dims[3];
}

// A node of a loaded model.
class Kernel {
 public:
  Kernel(const Api& api, const std::string& where) : api_(api), where_(where) {}
  virtual ~Kernel() = default;

  virtual void compute(KernelContext* context) const = 0;

  const Api& api() const { return api_; }
  const char* where() const { return where_.c_str(); }

 protected:
  Tensor input(KernelContext* context, size_t index, const char* name, ElementType type) const {
    return input_of(api_, context, index, name, type);
  }

  PerChannel get(KernelContext* context, const Parameter<float>& parameter, int64_t channels) const {
    const auto view = parameter.get(api_, context, channels);
    return PerChannel{view.values, view.count};
  }

  template <typename T>
  T* output(KernelContext* context, const int64_t (&dims)[4]) const {
    Value* value = nullptr;
    void* data = nullptr;
    ok(KernelContext_GetOutput(api_, context, 0, dims, 4, &value));
    ok(GetTensorMutableData(api_, value, &data));
    return static_cast<T*>(data);
  }

  // work(host), where the host is onnxruntime's own threads.
  template <typename Work>
  void on_threads(KernelContext* context, const Work& work) const {
    struct Pool {
      const Api& api;
      KernelContext* context;
      Status* status;
    } pool{api_, context, nullptr};
    work(Host{&pool, [](void* host, size_t tasks, void (*task)(void* job, size_t index), void* job) {
                Pool& p = *static_cast<Pool*>(host);
                if (!p.status) p.status = KernelContext_ParallelFor(p.api, p.context, task, tasks, 0, job);
              }});
    ok(pool.status);
  }

 private:
  const Api& api_;
  std::string where_;  // operator and node, for messages
};

// How the weights of an operator are given: [output channels, dims...].
struct BinaryWeights {
  using Conv = BinaryConv;
  using Element = uint8_t;
  static constexpr const char* kName = "w_packed";
  static constexpr ElementType kType = kUint8;

  static std::array<int64_t, 3> dims(const ConvShape& s) {
    return {s.kernel_h, s.kernel_w, ceil_div(s.group_channels(), 8)};
  }
  static void require_valid(const ConvShape& s) { require(check(s)); }
};

struct ByteWeights {
  using Conv = ByteConv;
  using Element = int8_t;
  static constexpr const char* kName = "w";
  static constexpr ElementType kType = kInt8;

  static std::array<int64_t, 3> dims(const ConvShape& s) { return {s.group_channels(), s.kernel_h, s.kernel_w}; }
  static void require_valid(const ConvShape& s) { require(check_bytes(s)); }
};

struct FloatWeights {
  using Conv = ImageConv;
  using Element = float;
  static constexpr const char* kName = "w";
  static constexpr ElementType kType = kFloat;

  static std::array<int64_t, 3> dims(const ConvShape& s) { return {s.channels, s.kernel_h, s.kernel_w}; }
  static void require_valid(const ConvShape& s) { require(check(s)); }
};

constexpr size_t kWeights = 1;  // the index of this input

// Constant weights are arranged once, others again whenever they change.
template <typename Form>
class Weights {
 public:
  // shape: as from conv_attributes. Its output channels are set if they are known.
  Weights(const Api& api, const KernelInfo* info, ConvShape* shape) : path_(selected_path()) {
    // Any image that fits will do for checking the rest.
    const auto extent = [](int64_t kernel, int64_t dilation) {
      return kernel > 0 && dilation > 0 && kernel <= kMost && dilation <= kMost ? (kernel - 1) * dilation + 1 : 1;
    };
    const Value* value = constant_of(api, info, kWeights);
    shape->height = extent(shape->kernel_h, shape->dilation_h);
    shape->width = extent(shape->kernel_w, shape->dilation_w);
    shape->out_channels = shape->groups;
    Form::require_valid(*shape);
    if (!value) return;
    const Tensor tensor = tensor_of(api, value, Form::kName, Form::kType);
    set_outputs(tensor, shape);
    Form::require_valid(*shape);
    conv_ = std::make_shared<const typename Form::Conv>(*shape, tensor.as<typename Form::Element>(), path_);
    constant_ = true;
    outputs_ = shape->out_channels;
  }

  // shape: with the batch, height and width of x. Sets its output channels and checks it.
  std::shared_ptr<const typename Form::Conv> get(const Api& api, KernelContext* context, ConvShape* shape) {
    if (constant_) {
      shape->out_channels = outputs_;
      Form::require_valid(*shape);
      return conv_;
    }
    const Tensor tensor = input_of(api, context, kWeights, Form::kName, Form::kType);
    set_outputs(tensor, shape);
    Form::require_valid(*shape);
    const std::lock_guard<std::mutex> lock(mutex_);
    const size_t size = static_cast<size_t>(tensor.count);
    if (!conv_ || given_.size() != size || std::memcmp(given_.data(), tensor.data, size * sizeof(given_[0])) != 0) {
      conv_.reset();
      const auto* values = tensor.as<typename Form::Element>();
      given_.assign(values, values + size);
      conv_ = std::make_shared<const typename Form::Conv>(*shape, given_.data(), path_);
    }
    return conv_;
  }

 private:
  static void set_outputs(const Tensor& t, ConvShape* shape) {
    const std::array<int64_t, 3> wanted = Form::dims(*shape);
    if (t.rank != 4 || !std::equal(wanted.begin(), wanted.end(), t.dims + 1)) {
      refuse(std::string(Form::kName) + " is " + t.text() + ", expected [output channels, " +
             text_of(wanted.data(), 3).substr(1));
    }
    shape->out_channels = t.dims[0];
  }

  const Path path_;
  bool constant_ = false;
  int64_t outputs_ = 0;  // if constant
  std::mutex mutex_;     // of what follows, if not constant
  std::vector<typename Form::Element> given_;
  std::shared_ptr<const typename Form::Conv> conv_;
};

// The attribute `channels` of an operator whose x is bits: they do not tell how many there are.
void require_channels(const Api& api, const KernelInfo* info, const ConvShape& shape) {
  const int64_t channels = integers(KernelAttributes{api, info}, "channels", 1)[0];
  if (channels == shape.channels) return;
  refuse("channels is " + std::to_string(channels) + ", expected in_channels times group, " +
         std::to_string(shape.channels));
}

// BinaryConv2d, BinaryConv2dFromBits, which has no shift, and BinaryConv2dSkip, whose residual is x. What follows the
// bias has the same order in all.
class ConvToFloat : public Kernel {
 public:
  // slope: the index of this input; the residual's, if it is an input, is the one before.
  ConvToFloat(const Api& api, const KernelInfo* info, const std::string& where, size_t slope)
      : Kernel(api, where),
        shape_(conv_attributes(KernelAttributes{api, info})),
        weights_(api, info, &shape_),
        scale_(api, info, 2, "scale", kFloat),
        bias_(api, info, 3, "bias", kFloat),
        residual_(slope - 1),
        slope_(api, info, slope, "slope", kFloat),
        shift_in_(api, info, slope + 1, "act_shift_in", kFloat),
        shift_out_(api, info, slope + 2, "act_shift_out", kFloat) {
    if (!constant_of(api, info, kWeights)) return;
    known_ = affine([&](const Parameter<float>& p) { return p.known(shape_.out_channels); });
    for (const PerChannel& p : {known_.scale, known_.bias, known_.slope, known_.shift_in, known_.shift_out}) {
      if (!p.values) return;
    }
    finishes_ = make_finishes(shape_, known_);
    known_.finishes = &finishes_;
  }

 protected:
  // x: the input, whose axis 1 must hold `planes` of what `what` says. skips: it is the residual, too.
  // run(conv, shape, affine, y, host) does the work.
  template <typename Run>
  void compute_with(KernelContext* context, const Tensor& x, int64_t planes, const char* what, bool skips,
                    const Run& run) const {
    ConvShape shape = shape_;
    set_image(x, planes, what, &shape);
    const std::shared_ptr<const BinaryConv> conv = weights_.get(api(), context, &shape);
    Affine affine = known_;
    if (!affine.finishes)
      affine = this->affine([&](const Parameter<float>& p) { return p.get(api(), context, shape.out_channels); });
    const int64_t dims[] = {shape.batch, shape.out_channels, shape.out_height(), shape.out_width()};
    const Tensor residual = skips ? x : input(context, residual_, "residual", kFloat);
    if (residual.count == 1 && !skips) {
      affine.residual_value = *residual.as<float>();
      if (affine.residual_value != 0) affine.finishes = nullptr;
    } else if (residual.rank == 4 && std::equal(dims, dims + 4, residual.dims)) {
      affine.residual = residual.as<float>();
    } else {
      refuse((skips ? "x is " : "residual is ") + residual.text() + ", expected " + text_of(dims, 4) +
             (skips ? " as the output" : " or one element"));
    }
    float* y = output<float>(context, dims);
    if (shape.batch == 0) return;
    on_threads(context, [&](const Host& host) { run(*conv, shape, affine, y, host); });
  }

  ConvShape shape_;

 private:
  // view(parameter) -> its values. No residual.
  template <typename View>
  Affine affine(const View& view) const {
    const auto each = [&](const Parameter<float>& p) {
      const auto found = view(p);
      return PerChannel{found.values, found.count};
    };
    return {each(scale_), each(bias_), each(slope_), each(shift_in_), each(shift_out_), nullptr, 0};
  }

  mutable Weights<BinaryWeights> weights_;  // has a lock of its own
  Affine known_{};                          // whole if it has finishes: all parameters are constants
  std::vector<Finish> finishes_;
  Parameter<float> scale_, bias_;
  size_t residual_;
  Parameter<float> slope_, shift_in_, shift_out_;
};

class ConvFromFloats : public ConvToFloat {
 public:
  ConvFromFloats(const Api& api, const KernelInfo* info, const std::string& where, bool skips)
      : ConvToFloat(api, info, where, skips ? 5 : 6), skips_(skips), shift_(api, info, 4, "shift", kFloat) {
    shift_.check(shape_.channels);
  }

  void compute(KernelContext* context) const override {
    const Tensor x = input(context, 0, "x", kFloat);
    const PerChannel shift = get(context, shift_, shape_.channels);
    compute_with(context, x, shape_.channels, "channels", skips_,
                 [&](const BinaryConv& conv, const ConvShape& shape, const Affine& affine, float* y, const Host& host) {
                   conv.run(shape, x.as<float>(), shift, affine, y, host);
                 });
  }

 private:
  bool skips_;
  Parameter<float> shift_;
};

class BinaryConv2d : public ConvFromFloats {
 public:
  BinaryConv2d(const Api& api, const KernelInfo* info, const std::string& where)
      : ConvFromFloats(api, info, where, false) {}
};

class BinaryConv2dSkip : public ConvFromFloats {
 public:
  BinaryConv2dSkip(const Api& api, const KernelInfo* info, const std::string& where)
      : ConvFromFloats(api, info, where, true) {}
};

class BinaryConv2dFromBits : public ConvToFloat {
 public:
  BinaryConv2dFromBits(const Api& api, const KernelInfo* info, const std::string& where)
      : ConvToFloat(api, info, where, 5) {
    require_channels(api, info, shape_);
  }

  void compute(KernelContext* context) const override {
    const Tensor x = input(context, 0, "x", kUint32);
    compute_with(context, x, words_of(shape_.channels), "words of 32 channels", false,
                 [&](const BinaryConv& conv, const ConvShape& shape, const Affine& affine, float* y, const Host& host) {
                   conv.run_from_bits(shape, x.as<uint32_t>(), affine, y, host);
                 });
  }
};

class BinaryConv2dBits : public Kernel {
 public:
  BinaryConv2dBits(const Api& api, const KernelInfo* info, const std::string& where)
      : Kernel(api, where),
        shape_(conv_attributes(KernelAttributes{api, info})),
        weights_(api, info, &shape_),
        threshold_(api, info, 2, "threshold", kInt32) {
    require_channels(api, info, shape_);
  }

  void compute(KernelContext* context) const override {
    ConvShape shape = shape_;
    const Tensor x = input(context, 0, "x", kUint32);
    set_image(x, words_of(shape.channels), "words of 32 channels", &shape);
    const std::shared_ptr<const BinaryConv> conv = weights_.get(api(), context, &shape);
    const auto threshold = threshold_.get(api(), context, shape.out_channels);
    if (threshold.count != shape.out_channels) {
      refuse("threshold has one element, expected one for each of " + std::to_string(shape.out_channels) + " channels");
    }
    uint32_t* y =
        output<uint32_t>(context, {shape.batch, words_of(shape.out_channels), shape.out_height(), shape.out_width()});
    if (shape.batch == 0) return;
    on_threads(context, [&](const Host& host) { conv->run_bits(shape, x.as<uint32_t>(), threshold.values, y, host); });
  }

 private:
  ConvShape shape_;
  mutable Weights<BinaryWeights> weights_;
  Parameter<int32_t> threshold_;
};

class ByteConv2d : public Kernel {
 public:
  ByteConv2d(const Api& api, const KernelInfo* info, const std::string& where)
      : Kernel(api, where),
        shape_(conv_attributes(KernelAttributes{api, info})),
        weights_(api, info, &shape_),
        x_scale_(api, info, 2, "x_scale", kFloat),
        x_zero_(api, info, 3, "x_zero_point", kUint8),
        scale_(api, info, 4, "scale", kFloat),
        bias_(api, info, 5, "bias", kFloat),
        slope_(api, info, 6, "slope", kFloat),
        shift_out_(api, info, 7, "act_shift_out", kFloat),
        y_scale_(api, info, 8, "y_scale", kFloat),
        y_zero_(api, info, 9, "y_zero_point", kUint8) {
    x_scale_.check(1), x_zero_.check(1), y_scale_.check(1), y_zero_.check(1);
    if (const float* scale = x_scale_.constant()) require_levels({*scale, 0}, "x_scale", false);
    if (const float* scale = y_scale_.constant()) require_levels({*scale, 0}, "y_scale", true);
    if (!constant_of(api, info, kWeights)) return;
    for (const Parameter<float>* p : {&scale_, &bias_, &slope_, &shift_out_}) p->check(shape_.out_channels);
  }

  void compute(KernelContext* context) const override {
    ConvShape shape = shape_;
    const Tensor x = input(context, 0, "x", kFloat);
    set_image(x, shape.channels, "channels", &shape);
    const std::shared_ptr<const ByteConv> conv = weights_.get(api(), context, &shape);
    const Levels of_x = levels(context, x_scale_, x_zero_, "x_scale", false);
    ByteAffine affine;
    affine.scale = get(context, scale_, shape.out_channels);
    affine.bias = get(context, bias_, shape.out_channels);
    affine.slope = get(context, slope_, shape.out_channels);
    affine.shift_out = get(context, shift_out_, shape.out_channels);
    affine.y = levels(context, y_scale_, y_zero_, "y_scale", true);
    float* y = output<float>(context, {shape.batch, shape.out_channels, shape.out_height(), shape.out_width()});
    if (shape.batch == 0) return;
    on_threads(context, [&](const Host& host) { conv->run(shape, x.as<float>(), of_x, affine, y, host); });
  }

 private:
  Levels levels(KernelContext* context, const Parameter<float>& scale, const Parameter<uint8_t>& zero, const char* name,
                bool may_be_none) const {
    const Levels found{*scale.get(api(), context, 1).values, *zero.get(api(), context, 1).values};
    require_levels(found, name, may_be_none);
    return found;
  }

  static void require_levels(const Levels& levels, const char* name, bool may_be_none) {
    const std::string error = check(levels, may_be_none);
    if (!error.empty()) refuse(std::string(name) + " " + error);
  }

  ConvShape shape_;
  mutable Weights<ByteWeights> weights_;
  Parameter<float> x_scale_;
  Parameter<uint8_t> x_zero_;
  Parameter<float> scale_, bias_, slope_, shift_out_, y_scale_;
  Parameter<uint8_t> y_zero_;
};

class ImageConv2d : public Kernel {
 public:
  ImageConv2d(const Api& api, const KernelInfo* info, const std::string& where)
      : Kernel(api, where),
        shape_(image_attributes(KernelAttributes{api, info})),
        pool_(image_pool_attributes(KernelAttributes{api, info})),
        weights_(api, info, &shape_),
        bias_(api, info, 2, "bias", kFloat),
        slope_(api, info, 3, "slope", kFloat),
        shift_out_(api, info, 4, "act_shift_out", kFloat) {
    PoolShape smallest = pool_.over(shape_);  // an image that fits, for checking the rest
    smallest.height = std::max<int64_t>(smallest.kernel_h, 1);
    smallest.width = std::max<int64_t>(smallest.kernel_w, 1);
    const std::string error = check(smallest);
    if (!error.empty()) refuse("pool: " + error);
    if (!constant_of(api, info, kWeights)) return;
    for (const Parameter<float>* p : {&bias_, &slope_, &shift_out_}) p->check(shape_.out_channels);
  }

  void compute(KernelContext* context) const override {
    ConvShape shape = shape_;
    const Tensor x = input(context, 0, "x", kFloat);
    set_image(x, shape.channels, "channels", &shape);
    const std::shared_ptr<const ImageConv> conv = weights_.get(api(), context, &shape);
    require(check(shape, pool_));
    const PoolShape out = pool_.over(shape);
    const ImageAffine affine{get(context, bias_, shape.out_channels), get(context, slope_, shape.out_channels),
                             get(context, shift_out_, shape.out_channels)};
    float* y = output<float>(context, {shape.batch, shape.out_channels, out.out_height(), out.out_width()});
    if (shape.batch == 0) return;
    on_threads(context, [&](const Host& host) { conv->run(shape, pool_, x.as<float>(), affine, y, host); });
  }

 private:
  ConvShape shape_;
  ImagePool pool_;
  mutable Weights<FloatWeights> weights_;
  Parameter<float> bias_, slope_, shift_out_;
};

class PackSigns : public Kernel {
 public:
  PackSigns(const Api& api, const KernelInfo* info, const std::string& where)
      : Kernel(api, where),
        path_(selected_path()),
        channels_(integers(KernelAttributes{api, info}, "in_channels", 1)[0]),
        shift_(api, info, 1, "shift", kFloat) {
    require_size("in_channels", channels_);
    shift_.check(channels_);
  }

  void compute(KernelContext* context) const override {
    ConvShape shape;
    const Tensor x = input(context, 0, "x", kFloat);
    set_image(x, channels_, "channels", &shape);
    const auto shift = shift_.get(api(), context, channels_);
    uint32_t* bits = output<uint32_t>(context, {shape.batch, words_of(channels_), shape.height, shape.width});
    if (x.count == 0) return;
    on_threads(context, [&](const Host& host) {
      pack_signs(path_, shape.batch, channels_, shape.height * shape.width, x.as<float>(), {shift.values, shift.count},
                 bits, host);
    });
  }

 private:
  const Path path_;
  int64_t channels_;
  Parameter<float> shift_;
};

class BinaryMaxPool2d : public Kernel {
 public:
  BinaryMaxPool2d(const Api& api, const KernelInfo* info, const std::string& where)
      : Kernel(api, where), shape_(pool_attributes(KernelAttributes{api, info})) {
    PoolShape smallest = shape_;  // an image that fits, for checking the rest
    smallest.words = 1;
    smallest.height = std::max<int64_t>(shape_.kernel_h, 1);
    smallest.width = std::max<int64_t>(shape_.kernel_w, 1);
    require_valid(smallest);
  }

  void compute(KernelContext* context) const override {
    PoolShape shape = shape_;
    const Tensor x = input(context, 0, "x", kUint32);
    shape.words = x.rank == 4 ? x.dims[1] : 0;
    set_image(x, shape.words, "words", &shape);
    require_valid(shape);
    uint32_t* y = output<uint32_t>(context, {shape.batch, shape.words, shape.out_height(), shape.out_width()});
    if (shape.batch == 0) return;
    on_threads(context, [&](const Host& host) { max_pool_bits(shape, x.as<uint32_t>(), y, host); });
  }

 private:
  PoolShape shape_;
};

// Dimensions while a model is loaded: -1 is unknown, unless it has a name.
struct Dims {
  int64_t sizes[4] = {-1, -1, -1, -1};
  std::string names[4];
};

// False if input `index` is not known to have 4 axes.
bool read_dims(const Api& api, ShapeContext* context, size_t index, Dims* dims) {
  TensorInfo* info = nullptr;  // the context's
  size_t rank = 0;
  const char* names[4] = {};
  ok(ShapeInferContext_GetInputTypeShape(api, context, index, &info));
  if (!info) return false;
  ok(GetDimensionsCount(api, info, &rank));
  if (rank != 4) return false;
  ok(GetDimensions(api, info, dims->sizes, rank));
  ok(GetSymbolicDimensions(api, info, names, rank));
  for (size_t i = 0; i < rank; ++i) dims->names[i] = names[i] ? names[i] : "";
  return true;
}

void write_dims(const Api& api, ShapeContext* context, ElementType type, const Dims& dims) {
  const char* names[4];
  for (size_t i = 0; i < 4; ++i) {
    names[i] = dims.sizes[i] < 0 ? dims.names[i].c_str() : "";
    if (dims.sizes[i] < 0 && dims.names[i].empty()) return;  // neither size nor name: it cannot be said
  }
  OwnedInfo owner{api};
  ok(CreateTensorTypeAndShapeInfo(api, &owner.info));
  ok(SetTensorElementType(api, owner.info, type));
  ok(SetDimensions(api, owner.info, dims.sizes, 4));
  ok(SetSymbolicDimensions(api, owner.info, names, 4));
  ok(ShapeInferContext_SetOutputTypeShape(api, context, 0, owner.info));
}

// Sets shape's image to that of x, and its batch to 1 if it is unknown. False if height or width are unknown.
template <typename Shape>
bool infer_image(const Dims& x, Shape* shape) {
  shape->batch = std::max<int64_t>(x.sizes[0], 0);
  shape->height = x.sizes[2];
  shape->width = x.sizes[3];
  return x.sizes[2] > 0 && x.sizes[3] > 0;
}

void infer_conv(const Api& api, ShapeContext* context, bool bits) {
  ConvShape shape = conv_attributes(ShapeAttributes{api, context});
  Dims x, weights;
  if (!read_dims(api, context, 0, &x) || !read_dims(api, context, kWeights, &weights)) return;
  shape.out_channels = weights.sizes[0];
  if (!infer_image(x, &shape)) return;
  require_valid(shape);
  x.sizes[1] = bits ? words_of(shape.out_channels) : shape.out_channels;
  x.sizes[2] = shape.out_height();
  x.sizes[3] = shape.out_width();
  write_dims(api, context, bits ? kUint32 : kFloat, x);
}

void infer_image_conv(const Api& api, ShapeContext* context) {
  ConvShape shape = image_attributes(ShapeAttributes{api, context});
  const ImagePool pool = image_pool_attributes(ShapeAttributes{api, context});
  Dims x, weights;
  if (!read_dims(api, context, 0, &x) || !read_dims(api, context, kWeights, &weights)) return;
  shape.out_channels = weights.sizes[0];
  if (!infer_image(x, &shape)) return;
  require(check(shape, pool));
  const PoolShape out = pool.over(shape);
  x.sizes[1] = shape.out_channels;
  x.sizes[2] = out.out_height();
  x.sizes[3] = out.out_width();
  write_dims(api, context, kFloat, x);
}

void infer_pack(const Api& api, ShapeContext* context) {
  Dims x;
  if (!read_dims(api, context, 0, &x) || x.sizes[1] < 1) return;
  x.sizes[1] = words_of(std::min(x.sizes[1], kMost));
  write_dims(api, context, kUint32, x);
}

void infer_pool(const Api& api, ShapeContext* context) {
  PoolShape shape = pool_attributes(ShapeAttributes{api, context});
  Dims x;
  if (!read_dims(api, context, 0, &x) || !infer_image(x, &shape)) return;
  shape.words = x.sizes[1];
  require_valid(shape);
  x.sizes[2] = shape.out_height();
  x.sizes[3] = shape.out_width();
  write_dims(api, context, kUint32, x);
}

template <typename K>
Kernel* make(const Api& api, const KernelInfo* info, const std::string& where) {
  return new K(api, info, where);
}

struct Operator : CustomOp {
  const Api* api;
  const char* title;
  std::vector<ElementType> inputs;
  ElementType output;
  Kernel* (*make)(const Api&, const KernelInfo*, const std::string& where);
  void (*infer)(const Api&, ShapeContext*);
};

const Operator& self(const CustomOp* op) { return *static_cast<const Operator*>(op); }

// "BinaryConv2d 'layer1'"; a node without a name, or with a very long one, goes by its operator.
std::string name_of(const Operator& op, const KernelInfo* info) {
  char node[256] = {};
  size_t size = sizeof node;
  if (Status* status = KernelInfo_GetNodeName(*op.api, info, node, &size)) {
    ReleaseStatus(*op.api, status);
    return op.title;
  }
  return node[0] ? std::string(op.title) + " '" + node + "'" : op.title;
}

Status* create(const CustomOp* op, const Api* api, const KernelInfo* info, void** kernel) {
  const Operator& o = self(op);
  std::string where;
  *kernel = nullptr;
  Status* status = guarded(*api, o.title, [&] { where = name_of(o, info); });
  return status ? status : guarded(*api, where.c_str(), [&] { *kernel = o.make(*api, info, where); });
}

Status* compute(void* kernel, KernelContext* context) {
  const Kernel& k = *static_cast<const Kernel*>(kernel);
  return guarded(k.api(), k.where(), [&] { k.compute(context); });
}

// Never fails: what is wrong is said when the kernel is made or run, with the node's name.
Status* infer_shape(const CustomOp* op, ShapeContext* context) {
  const Operator& o = self(op);
  if (Status* status = guarded(*o.api, o.title, [&] { o.infer(*o.api, context); })) ReleaseStatus(*o.api, status);
  return nullptr;
}

// The output may take the place of input `index`.
template <int index>
size_t in_place(int** inputs, int** outputs) {
  static int input = index, output = 0;
  *inputs = &input;
  *outputs = &output;
  return 1;
}

Operator make_operator(const Api& api, const char* title, std::vector<ElementType> inputs, ElementType output,
                       decltype(Operator::make) make, decltype(Operator::infer) infer,
                       decltype(CustomOp::may_inplace) may_inplace = nullptr) {
  Operator op = {};
  op.may_inplace = may_inplace;
  op.release_may_inplace = [](int*, int*) {};
  op.name = [](const CustomOp* o) { return self(o).title; };
  op.provider = [](const CustomOp*) { return static_cast<const char*>(nullptr); };
  op.input_type = [](const CustomOp* o, size_t index) { return self(o).inputs[index]; };
  op.input_count = [](const CustomOp* o) { return self(o).inputs.size(); };
  op.output_type = [](const CustomOp* o, size_t) { return self(o).output; };
  op.output_count = [](const CustomOp*) { return size_t{1}; };
  op.input_presence = op.output_presence = [](const CustomOp*, size_t) { return 0; };
  op.input_memory = [](const CustomOp*, size_t) { return static_cast<int>(kDefaultMemory); };
  op.variadic_input_least = op.variadic_output_least = [](const CustomOp*) { return 1; };
  op.variadic_input_uniform = op.variadic_output_uniform = [](const CustomOp*) { return 1; };
  op.create_kernel_v2 = create;
  op.compute_v2 = compute;
  op.destroy_kernel = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  op.infer_shape = infer_shape;
  op.first_opset = [](const CustomOp*) { return 1; };
  op.last_opset = [](const CustomOp*) { return 1; };
  op.api = &api;
  op.title = title;
  op.inputs = std::move(inputs);
  op.output = output;
  op.make = make;
  op.infer = infer;
  return op;
}

// The operators for one onnxruntime; a process may hold several. Sessions keep pointers to it, so it is never freed.
struct Registration {
  std::vector<Operator> operators;
  CustomOpDomain* domain = nullptr;
};

CustomOpDomain* domain_for(const Api& api, uint32_t version) {
  static std::mutex mutex;
  static auto& known = *new std::map<const Api*, std::unique_ptr<Registration>>;
  const std::lock_guard<std::mutex> lock(mutex);
  std::unique_ptr<Registration>& slot = known[&api];
  if (slot) return slot->domain;
  auto fresh = std::make_unique<Registration>();
  fresh->operators = {
      make_operator(
          api, "BinaryConv2d", {kFloat, kUint8, kFloat, kFloat, kFloat, kFloat, kFloat, kFloat, kFloat}, kFloat,
          make<BinaryConv2d>, [](const Api& a, ShapeContext* c) { infer_conv(a, c, false); }, in_place<5>),
      make_operator(
          api, "BinaryConv2dSkip", {kFloat, kUint8, kFloat, kFloat, kFloat, kFloat, kFloat, kFloat}, kFloat,
          make<BinaryConv2dSkip>, [](const Api& a, ShapeContext* c) { infer_conv(a, c, false); }, in_place<0>),
      make_operator(
          api, "BinaryConv2dFromBits", {kUint32, kUint8, kFloat, kFloat, kFloat, kFloat, kFloat, kFloat}, kFloat,
          make<BinaryConv2dFromBits>, [](const Api& a, ShapeContext* c) { infer_conv(a, c, false); }, in_place<4>),
      make_operator(api, "BinaryConv2dBits", {kUint32, kUint8, kInt32}, kUint32, make<BinaryConv2dBits>,
                    [](const Api& a, ShapeContext* c) { infer_conv(a, c, true); }),
      make_operator(api, "ByteConv2d", {kFloat, kInt8, kFloat, kUint8, kFloat, kFloat, kFloat, kFloat, kFloat, kUint8},
                    kFloat, make<ByteConv2d>, [](const Api& a, ShapeContext* c) { infer_conv(a, c, false); }),
      make_operator(api, "ImageConv2d", {kFloat, kFloat, kFloat, kFloat, kFloat}, kFloat, make<ImageConv2d>,
                    infer_image_conv),
      make_operator(api, "PackSigns", {kFloat, kFloat}, kUint32, make<PackSigns>, infer_pack),
      make_operator(api, "BinaryMaxPool2d", {kUint32}, kUint32, make<BinaryMaxPool2d>, infer_pool),
  };
  for (Operator& op : fresh->operators) op.version = version;
  ok(CreateCustomOpDomain(api, kDomain, &fresh->domain));
  for (const Operator& op : fresh->operators) ok(CustomOpDomain_Add(api, fresh->domain, &op));
  slot = std::move(fresh);
  return slot->domain;
}

// The newest layout of an operator that both sides know. Asking for an interface that is too new would print a warning.
uint32_t layout_for(const ApiBase* base) {
  unsigned major = 0, minor = 0;
  const bool read = std::sscanf(base->version(), "%u.%u", &major, &minor) == 2;
  return read && (major > 1 || minor >= 18) ? 18 : kApiVersion;
}

Status* register_operators(SessionOptions* options, const ApiBase* base) {
  const Api* api = base->get_api(kApiVersion);
  if (!api) {
    api = base->get_api(1);  // enough to say so
    const std::string text =
        std::string("the ai.bnas operators need onnxruntime 1.17 or later, this is ") + base->version();
    return api ? CreateStatus(*api, kFail, text.c_str()) : nullptr;
  }
  return guarded(*api, "ai.bnas operators", [&] {
    selected_path();  // an unknown BNAS_ISA is told here
    ok(AddCustomOpDomain(*api, options, domain_for(*api, layout_for(base))));
  });
}

}  // namespace
}  // namespace bnas::ort

#define BNAS_EXPORT extern "C" __attribute__((visibility("default")))

BNAS_EXPORT bnas::ort::Status* RegisterCustomOps(bnas::ort::SessionOptions* options, const bnas::ort::ApiBase* base) {
  return bnas::ort::register_operators(options, base);
}

// The path that a session made now would use, such as "avx512"; empty if BNAS_ISA names none.
BNAS_EXPORT const char* bnas_isa() {
  try {
    return bnas::selected_path().name;
  } catch (...) {
    return "";
  }
}

BNAS_EXPORT const char* bnas_native_version() { return BNAS_VERSION; }

// As bound_gmacs of the path that a session made now would use; 0 if it has no bound or `seconds` is not above 0.
BNAS_EXPORT double bnas_bound_gmacs(double seconds) {
  try {
    const bnas::Path& path = bnas::selected_path();
    return path.isa && seconds > 0 ? bnas::bound_gmacs(path, seconds) : 0;
  } catch (...) {
    return 0;
  }
}
