// bnas-runner: times a .onnx file on a device without Python. onnxruntime and the operators of bnas are loaded while it
// runs, so it starts, and says what is missing, on a device that has neither.
#include <dlfcn.h>
#include <glob.h>
#include <limits.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>
#ifdef __GLIBC__
#include <gnu/libc-version.h>
#endif

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <exception>
#include <fstream>
#include <iterator>
#include <memory>
#include <new>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "npy.h"
#include "onnx_nodes.h"
#include "ort_abi.h"

namespace bnas {
namespace {

constexpr char kUsage[] =
    "usage: bnas-runner MODEL.onnx [options]\n"
    "  --threads N       threads of one run (1)\n"
    "  --input FILE.npy  an input of the model, in its order; without: fixed random values, a free batch axis being 1\n"
    "  --output FILE.npy where an output goes, in the model's order\n"
    "  --runs N          timed runs; without: until the median is known to 1 %, at least 30\n"
    "  --seconds S       the most time for them, after 30 runs (2)\n"
    "  --warmup N        untimed runs before; without: for a quarter of the seconds\n"
    "  --isa NAME        portable, avx2, avx512, neon or reference instead of the fastest; as BNAS_ISA\n"
    "  --ort PATH        libonnxruntime.so; without: ORT_LIBRARY, beside this program, where the system looks\n"
    "  --ops PATH        libbnas_ort.so; without: beside this program\n"
    "  --no-ops          run the operators of bnas by their definitions, in float\n"
    "  --no-optimize     leave the graph as it is in the file\n"
    "  --json            print JSON\n"
    "  --version         print the version\n"
    "Needs onnxruntime 1.17 or later; its Python wheels hold libonnxruntime.so from 1.20 on and need glibc 2.28.\n";

constexpr int kFailed = 1, kMistake = 2;  // exit codes
constexpr char kDomain[] = "ai.bnas";
// Those that the operator library has.
constexpr const char* kKernels[] = {"BinaryConv2d", "BinaryConv2dFromBits", "BinaryConv2dBits", "PackSigns",
                                    "BinaryMaxPool2d"};
constexpr size_t kMinSamples = 30;

struct Mistake : std::runtime_error {  // of the user
  using std::runtime_error::runtime_error;
};

struct Options {
  std::string model, ort, ops, isa;
  std::vector<std::string> inputs, outputs;
  bool json = false, no_ops = false, no_optimize = false;
  int threads = 1;
  int64_t runs = -1, warmup = -1;
  double seconds = 2;
};

int64_t whole_number(const std::string& option, const std::string& text, int64_t least, int64_t most) {
  char* end = nullptr;
  errno = 0;
  const long long value = std::strtoll(text.c_str(), &end, 10);
  if (text.empty() || *end || errno || value < least || value > most) {
    throw Mistake(option + " is '" + text + "', expected a number from " + std::to_string(least) + " to " +
                  std::to_string(most));
  }
  return value;
}

double seconds_of(const std::string& text) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (!text.empty() && !*end && value > 0 && value <= 86400) return value;
  throw Mistake("--seconds is '" + text + "', expected a number above 0, at most 86400");
}

Options parse(int argc, char** argv) {
  constexpr int64_t kMany = 10000000;
  Options options;
  for (int i = 1; i < argc; ++i) {
    std::string name = argv[i];
    if (name.size() < 2 || name[0] != '-') {
      if (!options.model.empty()) throw Mistake("two models are named, " + options.model + " and " + name);
      options.model = name;
      continue;
    }
    std::string given;
    const size_t equals = name.find('=');
    const bool joined = equals != std::string::npos;  // --threads=2
    if (joined) {
      given = name.substr(equals + 1);
      name.resize(equals);
    }
    const auto value = [&] {
      if (joined) return given;
      if (i + 1 >= argc) throw Mistake(name + " needs a value; see --help");
      return std::string(argv[++i]);
    };
    if (name == "--threads") {
      options.threads = static_cast<int>(whole_number(name, value(), 1, 256));
    } else if (name == "--runs") {
      options.runs = whole_number(name, value(), 1, kMany);
    } else if (name == "--warmup") {
      options.warmup = whole_number(name, value(), 0, kMany);
    } else if (name == "--seconds") {
      options.seconds = seconds_of(value());
    } else if (name == "--input") {
      options.inputs.push_back(value());
    } else if (name == "--output") {
      options.outputs.push_back(value());
    } else if (name == "--isa") {
      options.isa = value();
    } else if (name == "--ort") {
      options.ort = value();
    } else if (name == "--ops") {
      options.ops = value();
    } else if (name == "--json" && !joined) {
      options.json = true;
    } else if (name == "--no-ops" && !joined) {
      options.no_ops = true;
    } else if (name == "--no-optimize" && !joined) {
      options.no_optimize = true;
    } else {
      throw Mistake("unknown option " + std::string(argv[i]) + "; see --help");
    }
  }
  if (options.model.empty()) throw Mistake("no model is named; see --help");
  if (options.no_ops && !options.ops.empty()) throw Mistake("--ops and --no-ops exclude each other");
  return options;
}

bool exists(const std::string& path) { return access(path.c_str(), R_OK) == 0; }

std::string absolute(const std::string& path) {
  const std::unique_ptr<char, decltype(&free)> full(realpath(path.c_str(), nullptr), free);
  return full ? full.get() : path;
}

std::string program_folder() {
  char path[PATH_MAX];
  const ssize_t length = readlink("/proc/self/exe", path, sizeof path);
  const std::string whole(path, length > 0 && length < PATH_MAX ? static_cast<size_t>(length) : 0);
  return whole.substr(0, whole.rfind('/') + 1);
}

std::vector<uint8_t> read_file(const std::string& path) {
  struct stat status = {};
  if (stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode)) throw Mistake(path + " is a directory");
  std::ifstream file(path, std::ios::binary);
  std::vector<uint8_t> data;
  if (file) data.assign(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  if (!file || file.bad()) throw Mistake(path + " cannot be read: " + std::strerror(errno ? errno : EIO));
  return data;
}

// Beside the program; a wheel's has its version in its name.
std::string onnxruntime_beside() {
  glob_t found = {};
  std::string best;
  if (glob((program_folder() + "libonnxruntime.so*").c_str(), 0, nullptr, &found) == 0) best = found.gl_pathv[0];
  globfree(&found);
  return best;
}

std::string c_library() {
#ifdef __GLIBC__
  return std::string("glibc ") + gnu_get_libc_version();
#else
  return "another C library";
#endif
}

struct Runtime {
  const ort::Api* api;
  std::string version;
};

Runtime load_onnxruntime(const Options& options) {
  const char* variable = std::getenv("ORT_LIBRARY");
  std::string path = !options.ort.empty() ? options.ort : variable ? variable : "";
  if (!path.empty() && !exists(path)) {
    throw Mistake((options.ort.empty() ? "ORT_LIBRARY=" : "--ort ") + path +
                  " cannot be read: " + std::strerror(errno));
  }
  if (path.empty()) path = onnxruntime_beside();
  void* library = nullptr;
  std::string why;
  const std::vector<std::string> names = path.empty()
                                             ? std::vector<std::string>{"libonnxruntime.so", "libonnxruntime.so.1"}
                                             : std::vector<std::string>{absolute(path)};
  for (const std::string& name : names) {
    if (library) break;
    library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library && why.empty()) why = dlerror();
  }
  if (!library) {
    throw std::runtime_error("onnxruntime cannot be loaded (" + why +
                             "); name a libonnxruntime.so 1.17 or later for this processor with --ort; the one in "
                             "Python wheels, from 1.20 on, needs glibc 2.28, here is " +
                             c_library());
  }
  const auto base_of = reinterpret_cast<const ort::ApiBase* (*)()>(dlsym(library, "OrtGetApiBase"));
  if (!base_of) throw Mistake(path + " is not onnxruntime: it has no OrtGetApiBase");
  const ort::ApiBase* base = base_of();
  const Runtime runtime{base->get_api(ort::kApiVersion), base->version()};
  if (runtime.api) return runtime;
  throw std::runtime_error("onnxruntime 1.17 or later is needed, " + path + " is " + runtime.version);
}

std::string message_of(const ort::Api& api, ort::Status* status) {
  std::string text = ort::GetErrorMessage(api, status);
  ort::ReleaseStatus(api, status);
  return text;
}

template <typename T, const ort::Entry<void(T*)>& kRelease>
struct Owned {
  const ort::Api& api;
  T* pointer = nullptr;

  explicit Owned(const ort::Api& a) : api(a) {}
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;
  ~Owned() {
    if (pointer) kRelease(api, pointer);
  }
};

struct Port {  // an input or output of the network
  std::string name;
  int type = 0;
  std::vector<int64_t> dims;  // -1 for a free one
};

int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// Normal floats and 0 or 1 as integers: indices that any table has. The same on every machine.
class Random {
 public:
  void fill(Array* array) {
    const size_t count = array->data.size() / array->kind->bytes;
    uint8_t* target = array->data.data();
    for (size_t i = 0; i < count; ++i, target += array->kind->bytes) {
      if (array->kind->type == ort::kFloat) {
        const float value = normal();
        std::memcpy(target, &value, sizeof value);
      } else {
        *target = next() >> 63;  // the lowest byte; the others are 0
      }
    }
  }

 private:
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

class Network {
 public:
  Network(const Runtime& runtime, const Options& options, const std::string& ops)
      : api_(*runtime.api), env_(api_), session_(api_), memory_(api_) {
    Owned<ort::SessionOptions, ort::ReleaseSessionOptions> settings(api_);
    ok("onnxruntime cannot start", ort::CreateEnv(api_, ort::kLogFatal, "bnas-runner", &env_.pointer));
    ok("", ort::CreateSessionOptions(api_, &settings.pointer));
    ok("", ort::SetIntraOpNumThreads(api_, settings.pointer, options.threads));
    ok("", ort::SetInterOpNumThreads(api_, settings.pointer, 1));
    // As bnas does in Python, so that the numbers compare.
    ok("", ort::AddSessionConfigEntry(api_, settings.pointer, "session.force_spinning_stop", "1"));
    if (options.no_optimize) {
      ok("", ort::SetSessionGraphOptimizationLevel(api_, settings.pointer, ort::kNoOptimization));
    }
    if (!ops.empty()) ok("", ort::RegisterCustomOpsLibrary_V2(api_, settings.pointer, ops.c_str()));
    const int64_t started = now_ns();
    ok(options.model + ": onnxruntime cannot load it",
       ort::CreateSession(api_, env_.pointer, options.model.c_str(), settings.pointer, &session_.pointer));
    load_ms = static_cast<double>(now_ns() - started) / 1e6;
    ok("", ort::CreateCpuMemoryInfo(api_, ort::kDeviceAllocator, ort::kDefaultMemory, &memory_.pointer));
    read_ports();
  }

  ~Network() {
    for (ort::Value* value : values_) ort::ReleaseValue(api_, value);
    release_results();
  }

  // Keeps the arrays.
  void set_inputs(std::vector<Array> arrays) {
    arrays_ = std::move(arrays);
    for (Array& array : arrays_) {
      uint8_t none = 0;
      ort::Value* value = nullptr;
      ok("", ort::CreateTensorWithDataAsOrtValue(api_, memory_.pointer, array.data.empty() ? &none : array.data.data(),
                                                 array.data.size(), array.dims.data(), array.dims.size(),
                                                 array.kind->type, &value));
      values_.push_back(value);
    }
    for (const Port& port : inputs) input_names_.push_back(port.name.c_str());
    for (const std::string& name : output_names) output_names_.push_back(name.c_str());
    results_.assign(output_names.size(), nullptr);
  }

  // Nanoseconds.
  int64_t run() {
    release_results();
    const int64_t started = now_ns();
    ort::Status* status = ort::Run(api_, session_.pointer, nullptr, input_names_.data(), values_.data(), values_.size(),
                                   output_names_.data(), output_names_.size(), results_.data());
    const int64_t ended = now_ns();
    ok("the run failed", status);
    return ended - started;
  }

  // Output `index` of the last run; `data` belongs to the network.
  Port result(size_t index, const void** data) const {
    Port port;
    port.name = output_names[index];
    *data = nullptr;
    int kind = 0;
    ok("", ort::GetValueType(api_, results_[index], &kind));
    if (kind != ort::kTensor) return port;
    Owned<ort::TensorInfo, ort::ReleaseTensorInfo> info(api_);
    ok("", ort::GetTensorTypeAndShape(api_, results_[index], &info.pointer));
    read_tensor(info.pointer, &port);
    if (!kind_of(port.type)) return port;
    void* elements = nullptr;
    ok("", ort::GetTensorMutableData(api_, results_[index], &elements));
    *data = elements;
    return port;
  }

  double load_ms = 0;
  std::vector<Port> inputs;
  std::vector<std::string> output_names;

 private:
  void ok(const std::string& what, ort::Status* status) const {
    if (status) throw std::runtime_error((what.empty() ? "" : what + ": ") + message_of(api_, status));
  }

  void read_tensor(const ort::TensorInfo* info, Port* port) const {
    size_t rank = 0;
    ok("", ort::GetTensorElementType(api_, info, &port->type));
    ok("", ort::GetDimensionsCount(api_, info, &rank));
    port->dims.resize(rank);
    ok("", ort::GetDimensions(api_, info, port->dims.data(), rank));
  }

  void read_ports() {
    size_t input_count = 0, output_count = 0;
    ort::Allocator* allocator = nullptr;
    ok("", ort::GetAllocatorWithDefaultOptions(api_, &allocator));
    ok("", ort::SessionGetInputCount(api_, session_.pointer, &input_count));
    ok("", ort::SessionGetOutputCount(api_, session_.pointer, &output_count));
    const auto text_of = [&](auto entry, size_t index) {
      char* text = nullptr;
      ok("", entry(api_, session_.pointer, index, allocator, &text));
      const std::string copy = text;
      ok("", ort::AllocatorFree(api_, allocator, text));
      return copy;
    };
    for (size_t i = 0; i < input_count; ++i) {
      Port port;
      port.name = text_of(ort::SessionGetInputName, i);
      Owned<ort::TypeInfo, ort::ReleaseTypeInfo> type(api_);
      const ort::TensorInfo* info = nullptr;
      ok("", ort::SessionGetInputTypeInfo(api_, session_.pointer, i, &type.pointer));
      ok("", ort::CastTypeInfoToTensorInfo(api_, type.pointer, &info));
      if (info) read_tensor(info, &port);
      inputs.push_back(port);
    }
    for (size_t i = 0; i < output_count; ++i) output_names.push_back(text_of(ort::SessionGetOutputName, i));
  }

  void release_results() {
    for (ort::Value*& value : results_) {
      if (value) ort::ReleaseValue(api_, value);
      value = nullptr;
    }
  }

  const ort::Api& api_;
  Owned<ort::Env, ort::ReleaseEnv> env_;
  Owned<ort::Session, ort::ReleaseSession> session_;
  Owned<ort::MemoryInfo, ort::ReleaseMemoryInfo> memory_;
  std::vector<Array> arrays_;
  std::vector<ort::Value*> values_, results_;
  std::vector<const char*> input_names_, output_names_;
};

std::vector<Array> random_inputs(const Options& options, const std::vector<Port>& ports) {
  std::vector<Array> arrays;
  Random random;
  for (const Port& port : ports) {
    Array array;
    array.kind = kind_of(port.type);
    array.dims = port.dims;
    const std::string where = options.model + ": input '" + port.name + "'";
    if (!array.kind) throw Mistake(where + " is not of float32, uint8, int32, int64 or uint32");
    if (!array.dims.empty() && array.dims[0] < 0) array.dims[0] = 1;
    if (std::count_if(array.dims.begin(), array.dims.end(), [](int64_t size) { return size < 0; })) {
      throw Mistake(where + " has shape " + shape_text(port.dims) + " with free axes; give one with --input FILE.npy");
    }
    array.data.resize(bytes_of(array.dims, array.kind->bytes));
    random.fill(&array);
    arrays.push_back(std::move(array));
  }
  return arrays;
}

std::vector<Array> inputs_of(const Options& options, const std::vector<Port>& ports) {
  if (options.inputs.empty()) return random_inputs(options, ports);
  if (options.inputs.size() != ports.size()) {
    throw Mistake(options.model + " takes " + std::to_string(ports.size()) + " inputs, " +
                  std::to_string(options.inputs.size()) + " are given");
  }
  std::vector<Array> arrays;
  for (size_t i = 0; i < ports.size(); ++i) {
    const std::string& path = options.inputs[i];
    Array array;
    try {
      array = npy::parse(read_file(path));
    } catch (const std::logic_error& error) {
      throw Mistake(path + " cannot be used: " + error.what());
    }
    const Port& port = ports[i];
    const std::string wanted = options.model + " wants for its input '" + port.name + "' ";
    if (array.kind->type != port.type) {
      const ElementKind* kind = kind_of(port.type);
      throw Mistake(path + " is " + array.kind->name + ", " + wanted +
                    (kind ? kind->name : "elements of type " + std::to_string(port.type)));
    }
    bool fits = array.dims.size() == port.dims.size();
    for (size_t axis = 0; fits && axis < port.dims.size(); ++axis) {
      fits = port.dims[axis] < 0 || port.dims[axis] == array.dims[axis];
    }
    if (!fits) {
      throw Mistake(path + " has shape " + shape_text(array.dims) + ", " + wanted + shape_text(port.dims) +
                    (std::count(port.dims.begin(), port.dims.end(), -1) ? ", -1 being free" : ""));
    }
    arrays.push_back(std::move(array));
  }
  return arrays;
}

// q percent of the samples lie below, interpolated.
double percentile_ms(std::vector<int64_t> samples, double q) {
  std::sort(samples.begin(), samples.end());
  const double place = q / 100 * static_cast<double>(samples.size() - 1);
  const size_t low = static_cast<size_t>(place), high = std::min(low + 1, samples.size() - 1);
  const double below = static_cast<double>(samples[low]), above = static_cast<double>(samples[high]);
  return (below + (above - below) * (place - static_cast<double>(low))) / 1e6;
}

// Whether the standard error of the median is below 1 %: half the distance between the samples sqrt(n) / 2 ranks below
// and above the middle.
bool settled(std::vector<int64_t> samples) {
  std::sort(samples.begin(), samples.end());
  const double last = static_cast<double>(samples.size() - 1);
  const double reach = std::sqrt(static_cast<double>(samples.size())) / 2;
  const double low = std::max(0.0, std::floor(last / 2 - reach)), high = std::min(last, std::ceil(last / 2 + reach));
  const double distance = static_cast<double>(samples[static_cast<size_t>(high)] - samples[static_cast<size_t>(low)]);
  return distance / 2 < 0.01 * static_cast<double>(samples[samples.size() / 2]);
}

std::vector<int64_t> time_runs(Network* network, const Options& options) {
  const auto budget = [](double seconds) { return now_ns() + static_cast<int64_t>(seconds * 1e9); };
  const int64_t warm = budget(options.seconds / 4);
  for (int64_t i = 0; options.warmup < 0 ? i < 2 || now_ns() < warm : i < options.warmup; ++i) network->run();
  std::vector<int64_t> samples;
  if (options.runs > 0) {
    for (int64_t i = 0; i < options.runs; ++i) samples.push_back(network->run());
    return samples;
  }
  const int64_t deadline = budget(options.seconds);
  do {
    const size_t block = samples.empty() ? kMinSamples : samples.size() / 4;
    for (size_t i = 0; i < block && (samples.size() < kMinSamples || now_ns() < deadline); ++i) {
      samples.push_back(network->run());
    }
  } while (now_ns() < deadline && !settled(samples));
  return samples;
}

std::string quoted(const std::string& text) {
  std::string json = "\"";
  for (const char c : text) {
    const unsigned char code = static_cast<unsigned char>(c);
    char escaped[8];
    std::snprintf(escaped, sizeof escaped, "\\u%04x", code);
    if (code < 32 || code == 127) {
      json += escaped;
    } else {
      json += (c == '"' || c == '\\' ? "\\" : "") + std::string(1, c);
    }
  }
  return json + "\"";
}

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.6f", value);
  return text;
}

std::string one_line(std::string text) {
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < 32 || c == 127) c = ' ';
  }
  return text;
}

struct Report {
  Options options;
  std::string engine, isa, version;
  double load_ms, first_ms;
  std::vector<int64_t> samples;
  std::vector<Port> inputs, outputs;
};

std::string ports_json(const std::vector<Port>& ports) {
  std::string json;
  for (const Port& port : ports) {
    const ElementKind* kind = kind_of(port.type);
    json += (json.empty() ? "" : ", ") + ("{\"name\": " + quoted(port.name)) +
            ", \"type\": " + (kind ? quoted(kind->name) : "null") + ", \"shape\": " + shape_text(port.dims) + "}";
  }
  return "[" + json + "]";
}

void print_json(const Report& r) {
  std::string samples;
  for (int64_t sample : r.samples) samples += (samples.empty() ? "" : ", ") + std::to_string(sample);
  const std::string json =
      "{\"model\": " + quoted(r.options.model) + ", \"engine\": " + quoted(r.engine) +
      ", \"isa\": " + (r.isa.empty() ? "null" : quoted(r.isa)) + ", \"onnxruntime\": " + quoted(r.version) +
      ", \"runner\": " + quoted(BNAS_VERSION) + ", \"threads\": " + std::to_string(r.options.threads) +
      ", \"load_ms\": " + number(r.load_ms) + ", \"first_ms\": " + number(r.first_ms) +
      ", \"p10_ms\": " + number(percentile_ms(r.samples, 10)) +
      ", \"p50_ms\": " + number(percentile_ms(r.samples, 50)) +
      ", \"p90_ms\": " + number(percentile_ms(r.samples, 90)) + ", \"count\": " + std::to_string(r.samples.size()) +
      ", \"inputs\": " + ports_json(r.inputs) + ", \"outputs\": " + ports_json(r.outputs) + ", \"samples_ns\": [" +
      samples + "]}";
  std::puts(json.c_str());
}

void print_text(const Report& r) {
  std::printf("%s: %s, onnxruntime %s, %d thread%s\n", r.options.model.c_str(), r.engine.c_str(), r.version.c_str(),
              r.options.threads, r.options.threads == 1 ? "" : "s");
  std::printf("load %.1f ms, first run %.3f ms\n", r.load_ms, r.first_ms);
  std::printf("median %.3f ms, p10 %.3f, p90 %.3f, of %zu runs\n", percentile_ms(r.samples, 50),
              percentile_ms(r.samples, 10), percentile_ms(r.samples, 90), r.samples.size());
}

// The path of the operator library; empty if it is not wanted, or if it could not run all of `operators`: part of a
// network in float must not go by the name of the kernels.
std::string find_ops(const Options& options, const std::set<std::string>& operators) {
  const auto has_kernel = [](const std::string& name) {
    return std::find(std::begin(kKernels), std::end(kKernels), name) != std::end(kKernels);
  };
  if (options.no_ops || !std::all_of(operators.begin(), operators.end(), has_kernel)) return "";
  const std::string path = options.ops.empty() ? program_folder() + "libbnas_ort.so" : options.ops;
  if (exists(path)) return absolute(path);
  if (options.ops.empty() && operators.empty()) return "";
  throw Mistake(path + " cannot be read: " + std::strerror(errno) +
                "; name the operator library with --ops, or run without its kernels with --no-ops");
}

std::string isa_of(const std::string& ops) {
  void* library = dlopen(ops.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) throw std::runtime_error("the operator library cannot be loaded: " + std::string(dlerror()));
  const auto isa = reinterpret_cast<const char* (*)()>(dlsym(library, "bnas_isa"));
  if (!isa) throw Mistake(ops + " is not the operator library of bnas: it has no bnas_isa");
  const char* name = isa();
  return name ? name : "";
}

Report run(const Options& options) {
  if (!options.isa.empty()) setenv("BNAS_ISA", options.isa.c_str(), 1);
  std::set<std::string> operators;
  {
    const std::vector<uint8_t> file = read_file(options.model);
    try {
      operators = onnx::operators_of(file.data(), file.size(), kDomain);
    } catch (const std::invalid_argument& error) {
      throw Mistake(options.model + " is not a whole .onnx file: " + error.what());
    }
  }
  const std::string ops = find_ops(options, operators);
  Report report;
  report.options = options;
  const std::string isa = ops.empty() ? "" : isa_of(ops);
  if (!operators.empty() && !ops.empty()) report.isa = isa;
  report.engine = operators.empty() ? "onnxruntime" : ops.empty() ? "function-float" : "native-" + isa;
  const Runtime runtime = load_onnxruntime(options);
  report.version = runtime.version;

  std::unique_ptr<Network> network;
  try {
    network = std::make_unique<Network>(runtime, options, ops);
  } catch (const std::runtime_error& error) {
    if (!ops.empty() && isa.empty()) throw Mistake(error.what());  // an unknown path
    throw;
  }
  if (options.outputs.size() > network->output_names.size()) {
    throw Mistake(options.model + " gives " + std::to_string(network->output_names.size()) + " outputs, " +
                  std::to_string(options.outputs.size()) + " files are named");
  }
  std::vector<Array> arrays = inputs_of(options, network->inputs);
  report.inputs = network->inputs;
  for (size_t i = 0; i < arrays.size(); ++i) report.inputs[i].dims = arrays[i].dims;
  network->set_inputs(std::move(arrays));
  report.load_ms = network->load_ms;
  report.first_ms = static_cast<double>(network->run()) / 1e6;
  for (size_t i = 0; i < network->output_names.size(); ++i) {
    const void* data = nullptr;
    const Port port = network->result(i, &data);
    report.outputs.push_back(port);
    if (i >= options.outputs.size()) continue;
    if (!data) throw std::runtime_error("output '" + port.name + "' is of a type that cannot be written");
    try {
      npy::write(options.outputs[i], *kind_of(port.type), port.dims, data);
    } catch (const std::runtime_error& error) {
      throw Mistake(error.what());
    }
  }
  report.samples = time_runs(network.get(), options);
  return report;
}

int fail(int code, const std::string& text) {
  std::fprintf(stderr, "bnas-runner: %s\n", one_line(text).c_str());
  return code;
}

}  // namespace
}  // namespace bnas

int main(int argc, char** argv) {
  using namespace bnas;
  try {
    for (int i = 1; i < argc; ++i) {
      const std::string argument = argv[i];
      if (argument == "--help" || argument == "-h") return std::fputs(kUsage, stdout), 0;
      if (argument == "--version") return std::puts("bnas-runner " BNAS_VERSION), 0;
    }
    const Options options = parse(argc, argv);
    const Report report = run(options);
    options.json ? print_json(report) : print_text(report);
    return std::fflush(stdout) == 0 ? 0 : fail(kFailed, "the result cannot be written");
  } catch (const Mistake& error) {
    return fail(kMistake, error.what());
  } catch (const std::bad_alloc&) {
    return fail(kFailed, "not enough memory");
  } catch (const std::exception& error) {
    return fail(kFailed, error.what());
  }
}
