// A network in onnxruntime: loading, what goes in and comes out, running, timing.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "npy.h"
#include "runtime.h"

namespace bnas {

// What a .onnx file says about itself.
struct ModelFile {
  std::string path;
  std::set<std::string> operators;  // of domain ai.bnas
  std::map<std::string, std::string> metadata;

  // Whether the operator library has all of these operators, and there are any. Part of a network in float must not go
  // by the name of the kernels.
  bool has_kernels() const;

  // "native-neon", "function-float" or "onnxruntime": what runs it, with or without the operator library.
  std::string engine(const OperatorLibrary* library) const;
};

// Throws Mistake if it cannot be read or is damaged.
ModelFile read_model(const std::string& path);

// The array in a .npy file. Throws Mistake if it cannot be read or used.
Array read_array(const std::string& path);

// Whole or not at all. Throws Mistake if it cannot be written.
void write_array(const std::string& path, const ElementKind& kind, const std::vector<int64_t>& dims, const void* data);

struct Port {  // an input or output of a network
  std::string name;
  int type = 0;
  std::vector<int64_t> dims;  // -1 for a free one
};

std::string ports_json(const std::vector<Port>& ports);

// Whether the sizes are those of the port, but for free ones and, of any port, the first `skip`.
bool fits(const std::vector<int64_t>& dims, const Port& port, size_t skip = 0);

// The most that may be asked for.
inline constexpr int64_t kManyRuns = 10000000, kMostThreads = 256;

int64_t now_ns();

struct SessionSettings {
  int threads = 1;
  bool optimize = true;
  std::string operators;  // path of the operator library; empty: operators of bnas run by their definitions
  std::string profile;    // what the name of onnxruntime's trace begins with; empty: none is written
};

class Network {
 public:
  // Throws std::runtime_error if onnxruntime cannot load it.
  Network(const Runtime& runtime, const std::string& model, const SessionSettings& settings);
  ~Network();
  Network(const Network&) = delete;
  Network& operator=(const Network&) = delete;

  // What `run` takes; kept.
  void set_inputs(std::vector<Array> arrays);

  // Nanoseconds of one run.
  int64_t run();

  // Output `index` of the last run. `data` belongs to the network; null if the type is none that we know.
  Port result(size_t index, const void** data) const;

  // Nanoseconds of a run on `count` samples of `array`, from `first` on. Output 0 is appended to `to`, which becomes
  // an array of what comes out. Leaves the inputs of `run` as they are. Throws std::runtime_error if that output is not
  // one value a sample, of a type that can be written.
  int64_t infer(const Array& array, int64_t first, int64_t count, Array* to) const;

  // Closes onnxruntime's trace; its path.
  std::string end_profile();

  double load_ms = 0;
  std::vector<Port> inputs, outputs;

 private:
  void read_ports();
  ort::Value* value_of(const Array& array, const std::vector<int64_t>& dims, const uint8_t* data, size_t bytes) const;
  Port describe(const ort::Value* value) const;
  void release_results();

  const ort::Api& api_;
  Owned<ort::Session, ort::ReleaseSession> session_;
  Owned<ort::MemoryInfo, ort::ReleaseMemoryInfo> memory_;
  std::vector<Array> arrays_;
  std::vector<ort::Value*> values_, results_;
  std::vector<const char*> input_names_, output_names_;
};

// The same on every machine; a free first axis becomes 1. Throws Mistake where another axis is free or a type unknown,
// naming `remedy`.
std::vector<Array> random_inputs(const std::string& model, const std::vector<Port>& ports, const std::string& remedy);

}  // namespace bnas
