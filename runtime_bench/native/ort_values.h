// What an operator gets from onnxruntime, checked: attributes, tensors, per-channel parameters. Everything thrown here
// ends as a status at the C border, see `guarded`.
#pragma once

#include <algorithm>
#include <cstdio>
#include <exception>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "conv.h"
#include "ort_abi.h"

namespace bnas::ort {

// A status of onnxruntime on its way up.
struct Passed {
  Status* status;
};

inline void ok(Status* status) {
  if (status) throw Passed{status};
}

[[noreturn]] inline void refuse(const std::string& text) { throw std::invalid_argument(text); }

// Runs `body`; what it throws becomes a status that begins with `where`.
template <typename Body>
Status* guarded(const Api& api, const char* where, const Body& body) noexcept {
  const auto status = [&](ErrorCode code, const char* what) {
    char text[1024];
    std::snprintf(text, sizeof text, "%s: %s", where, what);
    return CreateStatus(api, code, text);
  };
  try {
    body();
    return nullptr;
  } catch (const Passed& passed) {
    return passed.status;
  } catch (const std::invalid_argument& error) {
    return status(kInvalidArgument, error.what());
  } catch (const std::bad_alloc&) {
    return status(kFail, "not enough memory");
  } catch (const std::exception& error) {
    return status(kFail, error.what());
  } catch (...) {
    return status(kFail, "unknown error");
  }
}

inline std::string text_of(const int64_t* values, size_t count) {
  constexpr size_t kShown = 8;
  std::string text = "[";
  for (size_t i = 0; i < count && i < kShown; ++i) text += (i ? ", " : "") + std::to_string(values[i]);
  return text + (count > kShown ? ", ...]" : "]");
}

// An attribute source is a function object: read(name, values) gives false if there are no such integers.
struct KernelAttributes {
  const Api& api;
  const KernelInfo* info;

  bool operator()(const char* name, std::vector<int64_t>* values) const {
    size_t count = 0;
    if (missing(KernelInfoGetAttributeArray_int64(api, info, name, nullptr, &count))) return false;
    values->resize(count);
    return count == 0 || !missing(KernelInfoGetAttributeArray_int64(api, info, name, values->data(), &count));
  }

  bool operator()(const char* name, int64_t* value) const {
    return !missing(KernelInfoGetAttribute_int64(api, info, name, value));
  }

 private:
  bool missing(Status* status) const {
    if (status) ReleaseStatus(api, status);
    return status != nullptr;
  }
};

// The same while shapes are inferred.
struct ShapeAttributes {
  const Api& api;
  const ShapeContext* context;

  bool operator()(const char* name, std::vector<int64_t>* values) const {
    values->resize(4);  // no attribute has more
    size_t bytes = 0;
    if (!read(name, kAttributeInts, values->data(), values->size() * sizeof(int64_t), &bytes)) return false;
    values->resize(std::min(values->size(), bytes / sizeof(int64_t)));
    return true;
  }

  bool operator()(const char* name, int64_t* value) const {
    size_t bytes = 0;
    return read(name, kAttributeInt, value, sizeof *value, &bytes);
  }

 private:
  bool read(const char* name, AttributeType type, void* data, size_t size, size_t* used) const {
    const OpAttribute* attribute = nullptr;
    Status* status = ShapeInferContext_GetAttribute(api, context, name, &attribute);
    if (!status && attribute) status = ReadOpAttr(api, attribute, type, data, size, used);
    if (status) ReleaseStatus(api, status);
    return !status && attribute;
  }
};

// Attribute `name`: `count` integers.
template <typename Attributes>
std::vector<int64_t> integers(const Attributes& attributes, const char* name, size_t count) {
  const std::string wanted = std::to_string(count) + (count == 1 ? " integer" : " integers");
  std::vector<int64_t> values;
  if (!attributes(name, &values)) refuse(std::string("attribute ") + name + " is missing, expected " + wanted);
  if (values.size() == count) return values;
  refuse(std::string("attribute ") + name + " is " + text_of(values.data(), values.size()) + ", expected " + wanted);
}

template <typename Attributes>
int64_t integer(const Attributes& attributes, const char* name) {
  int64_t value = 0;
  if (!attributes(name, &value)) refuse(std::string("attribute ") + name + " is missing, expected an integer");
  return value;
}

struct Tensor {
  static constexpr size_t kMaxRank = 8;

  void* data = nullptr;
  size_t rank = 0;
  int64_t dims[kMaxRank] = {};
  int64_t count = 1;

  template <typename T>
  const T* as() const {
    return static_cast<const T*>(data);
  }

  std::string text() const { return text_of(dims, rank); }
};

// A type and shape that onnxruntime made for us.
struct OwnedInfo {
  const Api& api;
  TensorInfo* info = nullptr;
  ~OwnedInfo() {
    if (info) ReleaseTensorInfo(api, info);
  }
};

inline Tensor tensor_of(const Api& api, const Value* value, const char* name, ElementType type) {
  if (!value) refuse(std::string(name) + " is missing");
  OwnedInfo owner{api};
  Tensor tensor;
  int found = 0;
  ok(GetTensorTypeAndShape(api, value, &owner.info));
  ok(GetTensorElementType(api, owner.info, &found));
  ok(GetDimensionsCount(api, owner.info, &tensor.rank));
  if (found != type) {
    refuse(std::string(name) + " has element type " + std::to_string(found) + ", expected " + std::to_string(type));
  }
  if (tensor.rank > Tensor::kMaxRank) refuse(std::string(name) + " has " + std::to_string(tensor.rank) + " axes");
  ok(GetDimensions(api, owner.info, tensor.dims, tensor.rank));
  if (std::count(tensor.dims, tensor.dims + tensor.rank, 0)) tensor.count = 0;  // others may be anything then
  for (size_t i = 0; i < tensor.rank && tensor.count; ++i) tensor.count *= tensor.dims[i];
  ok(GetTensorMutableData(api, const_cast<Value*>(value), &tensor.data));
  return tensor;
}

inline Tensor input_of(const Api& api, KernelContext* context, size_t index, const char* name, ElementType type) {
  const Value* value = nullptr;
  ok(KernelContext_GetInput(api, context, index, &value));
  return tensor_of(api, value, name, type);
}

// Input `index` of a kernel under construction if it is a constant of the model, else null.
inline const Value* constant_of(const Api& api, const KernelInfo* info, size_t index) {
  int is_constant = 0;
  const Value* value = nullptr;
  ok(KernelInfoGetConstantInput_tensor(api, info, index, &is_constant, &value));
  return is_constant ? value : nullptr;
}

// An input of one element, or of one for each channel: [channels, 1, 1], with or without a leading axis of 1. A
// constant one is read when the kernel is made, so that a run need not look at it.
template <typename T>
class Parameter {
 public:
  struct View {
    const T* values;
    int64_t count;
  };

  Parameter(const Api& api, const KernelInfo* info, size_t index, const char* name, ElementType type)
      : index_(index), name_(name), type_(type) {
    const Value* value = constant_of(api, info, index);
    if (!value) return;
    const Tensor tensor = tensor_of(api, value, name, type);
    constant_ = true;
    tensor_ = tensor;
    values_.assign(tensor.as<T>(), tensor.as<T>() + tensor.count);
    tensor_.data = values_.data();
  }

  Parameter(const Parameter&) = delete;
  Parameter& operator=(const Parameter&) = delete;

  // For `channels` channels; valid during the run.
  View get(const Api& api, KernelContext* context, int64_t channels) const {
    if (constant_) return checked(tensor_, channels);
    return checked(input_of(api, context, index_, name_, type_), channels);
  }

  // As `get`, with null for values that are not known before the first run.
  View known(int64_t channels) const { return constant_ ? checked(tensor_, channels) : View{nullptr, 0}; }

  // The values if they are known before the first run, else null.
  const T* constant() const { return constant_ ? values_.data() : nullptr; }

  // Refuses what `get` would refuse, as far as it is known before the first run.
  void check(int64_t channels) const { known(channels); }

 private:
  View checked(const Tensor& t, int64_t channels) const {
    const bool per_channel = (t.rank == 3 || (t.rank == 4 && t.dims[0] == 1)) && t.count == channels &&
                             t.dims[t.rank - 3] == channels && t.count > 0;
    if (per_channel || t.count == 1) return {t.as<T>(), t.count};
    refuse(std::string(name_) + " is " + t.text() + ", expected [" + std::to_string(channels) +
           ", 1, 1] or one element");
  }

  size_t index_;
  const char* name_;
  ElementType type_;
  bool constant_ = false;
  Tensor tensor_;
  std::vector<T> values_;
};

}  // namespace bnas::ort
