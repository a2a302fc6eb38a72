#include "network.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "json.h"
#include "onnx_nodes.h"

namespace bnas {
namespace {

constexpr char kDomain[] = "ai.bnas";
// Those that the operator library has.
constexpr const char* kKernels[] = {"BinaryConv2d",     "BinaryConv2dSkip", "BinaryConv2dFromBits",
                                    "BinaryConv2dBits", "ByteConv2d",       "ImageConv2d",
                                    "PackSigns",        "BinaryMaxPool2d"};

[[noreturn]] void cannot_read(const std::string& path) {
  throw Mistake(path + " cannot be read: " + std::strerror(errno));
}

// A file as memory: of a network only what is looked at is read, so its weights do not count in the process's memory.
class Mapping {
 public:
  explicit Mapping(const std::string& path) {
    const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (file < 0) cannot_read(path);
    struct stat status = {};
    errno = 0;
    if (fstat(file, &status) == 0 && !S_ISREG(status.st_mode)) errno = S_ISDIR(status.st_mode) ? EISDIR : EINVAL;
    size_ = static_cast<size_t>(status.st_size);
    if (errno == 0 && size_ > 0) {  // an empty file cannot be mapped
      void* mapped = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file, 0);
      if (mapped != MAP_FAILED) data_ = static_cast<const uint8_t*>(mapped);
    }
    const int error = errno;
    close(file);
    errno = error;
    if (error != 0) cannot_read(path);
  }
  ~Mapping() {
    if (data_) munmap(const_cast<uint8_t*>(data_), size_);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  const uint8_t* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  const uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

void read_tensor(const ort::Api& api, const ort::TensorInfo* info, Port* port) {
  size_t rank = 0;
  require_ok(api, ort::GetTensorElementType(api, info, &port->type));
  require_ok(api, ort::GetDimensionsCount(api, info, &rank));
  port->dims.resize(rank);
  require_ok(api, ort::GetDimensions(api, info, port->dims.data(), rank));
}

// Normal floats, -1 and 1 in half precision, and 0 or 1 as integers: indices that any table has. The same on every
// machine.
class Random {
 public:
  void fill(Array* array) {
    const size_t size = array->kind->bytes;
    for (uint8_t *target = array->data.data(), *end = target + array->data.size(); target != end; target += size) {
      switch (array->kind->type) {
        case ort::kFloat:
          put(normal(), target);
          break;
        case ort::kDouble:
          put(static_cast<double>(normal()), target);
          break;
        case ort::kFloat16:
          put(static_cast<uint16_t>(0x3c00 | (next() >> 63) << 15), target);
          break;
        default:
          *target = next() >> 63;  // the lowest byte; the others are 0
      }
    }
  }

 private:
  template <typename T>
  static void put(T value, uint8_t* target) {
    std::memcpy(target, &value, sizeof value);
  }

  uint64_t next() {  // splitmix64
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
  }

  // Twelve uniform numbers, near enough, and without a mathematical library that rounds in its own way.
  float normal() {
    int64_t sum = 0;
    for (int i = 0; i < 12; ++i) sum += static_cast<int64_t>(next() >> 44);
    return static_cast<float>(sum - 6 * (int64_t{1} << 20)) / static_cast<float>(1 << 20);
  }

  uint64_t state_ = 0;
};

}  // namespace

bool ModelFile::has_kernels() const {
  return !operators.empty() && std::all_of(operators.begin(), operators.end(), [](const std::string& name) {
    return std::find(std::begin(kKernels), std::end(kKernels), name) != std::end(kKernels);
  });
}

std::string ModelFile::engine(const OperatorLibrary* library) const {
  return operators.empty() ? "onnxruntime" : library ? "native-" + library->isa : "function-float";
}

ModelFile read_model(const std::string& path) {
  const Mapping file(path);
  try {
    onnx::Description found = onnx::describe(file.data(), file.size(), kDomain);
    return {path, std::move(found.operators), std::move(found.metadata)};
  } catch (const std::invalid_argument& error) {
    throw Mistake(path + " is not a whole .onnx file: " + error.what());
  }
}

Array read_array(const std::string& path) {
  const Mapping file(path);
  try {
    return npy::parse({file.data(), file.data() + file.size()});
  } catch (const std::logic_error& error) {
    throw Mistake(path + " cannot be used: " + error.what());
  }
}

void write_array(const std::string& path, const ElementKind& kind, const std::vector<int64_t>& dims, const void* data) {
  try {
    npy::write(path, kind, dims, data);
  } catch (const std::runtime_error& error) {
    throw Mistake(error.what());
  }
}

std::string ports_json(const std::vector<Port>& ports) {
  return json::list(ports, [](const Port& port) {
    const ElementKind* kind = kind_of(port.type);
    return json::object({{"name", json::quoted(port.name)},
                         {"type", kind ? json::quoted(kind->name) : "null"},
                         {"shape", json::integers(port.dims)}});
  });
}

bool fits(const std::vector<int64_t>& dims, const Port& port, size_t skip) {
  if (dims.size() != port.dims.size()) return false;
  for (size_t axis = skip; axis < dims.size(); ++axis) {
    if (port.dims[axis] >= 0 && port.dims[axis] != dims[axis]) return false;
  }
  return true;
}

int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

Network::Network(const Runtime& runtime, const std::string& model, const SessionSettings& settings)
    : api_(runtime.api()), session_(api_), memory_(api_) {
  Owned<ort::SessionOptions, ort::ReleaseSessionOptions> options(api_);
  require_ok(api_, ort::CreateSessionOptions(api_, &options.pointer));
  require_ok(api_, ort::SetIntraOpNumThreads(api_, options.pointer, settings.threads));
  require_ok(api_, ort::SetInterOpNumThreads(api_, options.pointer, 1));
  // As bnas does in Python, so that the numbers compare; and files that take turns do not slow each other.
  require_ok(api_, ort::AddSessionConfigEntry(api_, options.pointer, "session.force_spinning_stop", "1"));
  if (!settings.optimize) {
    require_ok(api_, ort::SetSessionGraphOptimizationLevel(api_, options.pointer, ort::kNoOptimization));
  }
  if (!settings.profile.empty()) {
    require_ok(api_, ort::EnableProfiling(api_, options.pointer, settings.profile.c_str()));
  }
  if (!settings.operators.empty()) {
    require_ok(api_, ort::RegisterCustomOpsLibrary_V2(api_, options.pointer, settings.operators.c_str()));
  }
  const int64_t started = now_ns();
  require_ok(api_, ort::CreateSession(api_, runtime.environment(), model.c_str(), options.pointer, &session_.pointer),
             model + ": onnxruntime cannot load it");
  load_ms = static_cast<double>(now_ns() - started) / 1e6;
  require_ok(api_, ort::CreateCpuMemoryInfo(api_, ort::kDeviceAllocator, ort::kDefaultMemory, &memory_.pointer));
  read_ports();
  for (const Port& port : inputs) input_names_.push_back(port.name.c_str());
  for (const Port& port : outputs) output_names_.push_back(port.name.c_str());
  results_.assign(outputs.size(), nullptr);
}

Network::~Network() {
  for (ort::Value* value : values_) ort::ReleaseValue(api_, value);
  release_results();
}

void Network::set_inputs(std::vector<Array> arrays) {
  arrays_ = std::move(arrays);
  for (const Array& array : arrays_)
    values_.push_back(value_of(array, array.dims, array.data.data(), array.data.size()));
}

int64_t Network::run() {
  release_results();
  const int64_t started = now_ns();
  ort::Status* status = ort::Run(api_, session_.pointer, nullptr, input_names_.data(), values_.data(), values_.size(),
                                 output_names_.data(), output_names_.size(), results_.data());
  const int64_t ended = now_ns();
  require_ok(api_, status, "the run failed");
  return ended - started;
}

Port Network::result(size_t index, const void** data) const {
  Port port = describe(results_[index]);
  port.name = outputs[index].name;
  *data = nullptr;
  if (!kind_of(port.type)) return port;
  void* elements = nullptr;
  require_ok(api_, ort::GetTensorMutableData(api_, results_[index], &elements));
  *data = elements;
  return port;
}

int64_t Network::infer(const Array& array, int64_t first, int64_t count, Array* to) const {
  std::vector<int64_t> dims = array.dims;
  const size_t sample = array.data.size() / static_cast<size_t>(dims[0]);
  dims[0] = count;
  Owned<ort::Value, ort::ReleaseValue> value(api_), output(api_);
  value.pointer = value_of(array, dims, array.data.data() + sample * static_cast<size_t>(first),
                           sample * static_cast<size_t>(count));
  const int64_t started = now_ns();
  ort::Status* status = ort::Run(api_, session_.pointer, nullptr, input_names_.data(), &value.pointer, 1,
                                 output_names_.data(), 1, &output.pointer);
  const int64_t taken = now_ns() - started;
  require_ok(api_, status, "the run failed");

  Port found = describe(output.pointer);
  const ElementKind* kind = kind_of(found.type);
  const std::string name = "output '" + outputs[0].name + "'";
  if (!kind) throw std::runtime_error(name + " is of a type that cannot be written");
  if (found.dims.empty() || found.dims[0] != count) {
    throw std::runtime_error(name + " has shape " + shape_text(found.dims) + " for " + std::to_string(count) +
                             " samples, expected one value for each of them");
  }
  const std::vector<int64_t> before = to->dims;
  found.dims[0] += to->kind ? before[0] : 0;
  if (to->kind && !std::equal(before.begin() + 1, before.end(), found.dims.begin() + 1, found.dims.end())) {
    throw std::runtime_error(name + " changes its shape from sample to sample");
  }
  void* elements = nullptr;
  require_ok(api_, ort::GetTensorMutableData(api_, output.pointer, &elements));
  const size_t bytes = bytes_of(found.dims, kind->bytes) - to->data.size();
  to->kind = kind;
  to->dims = found.dims;
  to->data.insert(to->data.end(), static_cast<uint8_t*>(elements), static_cast<uint8_t*>(elements) + bytes);
  return taken;
}

std::string Network::end_profile() {
  ort::Allocator* allocator = nullptr;
  char* text = nullptr;
  require_ok(api_, ort::GetAllocatorWithDefaultOptions(api_, &allocator));
  require_ok(api_, ort::SessionEndProfiling(api_, session_.pointer, allocator, &text));
  const std::string path = text;
  require_ok(api_, ort::AllocatorFree(api_, allocator, text));
  return path;
}

ort::Value* Network::value_of(const Array& array, const std::vector<int64_t>& dims, const uint8_t* data,
                              size_t bytes) const {
  static uint8_t none = 0;
  ort::Value* value = nullptr;
  require_ok(api_, ort::CreateTensorWithDataAsOrtValue(api_, memory_.pointer, data ? const_cast<uint8_t*>(data) : &none,
                                                       bytes, dims.data(), dims.size(), array.kind->type, &value));
  return value;
}

Port Network::describe(const ort::Value* value) const {
  Port port;
  int kind = 0;
  require_ok(api_, ort::GetValueType(api_, value, &kind));
  if (kind != ort::kTensor) return port;
  Owned<ort::TensorInfo, ort::ReleaseTensorInfo> info(api_);
  require_ok(api_, ort::GetTensorTypeAndShape(api_, value, &info.pointer));
  read_tensor(api_, info.pointer, &port);
  return port;
}

void Network::read_ports() {
  size_t input_count = 0, output_count = 0;
  ort::Allocator* allocator = nullptr;
  require_ok(api_, ort::GetAllocatorWithDefaultOptions(api_, &allocator));
  require_ok(api_, ort::SessionGetInputCount(api_, session_.pointer, &input_count));
  require_ok(api_, ort::SessionGetOutputCount(api_, session_.pointer, &output_count));
  const auto port_of = [&](auto name_of, auto type_of, size_t index) {
    Port port;
    char* text = nullptr;
    require_ok(api_, name_of(api_, session_.pointer, index, allocator, &text));
    port.name = text;
    require_ok(api_, ort::AllocatorFree(api_, allocator, text));
    Owned<ort::TypeInfo, ort::ReleaseTypeInfo> type(api_);
    const ort::TensorInfo* info = nullptr;
    require_ok(api_, type_of(api_, session_.pointer, index, &type.pointer));
    require_ok(api_, ort::CastTypeInfoToTensorInfo(api_, type.pointer, &info));
    if (info) read_tensor(api_, info, &port);
    return port;
  };
  for (size_t i = 0; i < input_count; ++i) {
    inputs.push_back(port_of(ort::SessionGetInputName, ort::SessionGetInputTypeInfo, i));
  }
  for (size_t i = 0; i < output_count; ++i) {
    outputs.push_back(port_of(ort::SessionGetOutputName, ort::SessionGetOutputTypeInfo, i));
  }
}

void Network::release_results() {
  for (ort::Value*& value : results_) {
    if (value) ort::ReleaseValue(api_, value);
    value = nullptr;
  }
}

std::vector<Array> random_inputs(const std::string& model, const std::vector<Port>& ports, const std::string& remedy) {
  std::vector<Array> arrays;
  Random random;
  for (const Port& port : ports) {
    Array array;
    array.kind = kind_of(port.type);
    array.dims = port.dims;
    const std::string where = model + ": input '" + port.name + "'";
    if (!array.kind) throw Mistake(where + " is of another type than " + kind_names());
    if (!array.dims.empty() && array.dims[0] < 0) array.dims[0] = 1;
    if (std::count_if(array.dims.begin(), array.dims.end(), [](int64_t size) { return size < 0; })) {
      throw Mistake(where + " has shape " + shape_text(port.dims) + " with free axes; " + remedy);
    }
    array.data.resize(bytes_of(array.dims, array.kind->bytes));
    random.fill(&array);
    arrays.push_back(std::move(array));
  }
  return arrays;
}

}  // namespace bnas
