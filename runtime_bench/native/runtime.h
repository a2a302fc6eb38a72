// onnxruntime and the operator library, which are loaded while a program runs: it starts, and says what is missing, on
// a device that has neither.
#pragma once

#include <string>

#include "mistake.h"
#include "ort_abi.h"

namespace bnas {

// What a function of onnxruntime made and another one frees.
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

// Throws std::runtime_error with the status's text, behind `what` if that is not empty, unless it is success.
void require_ok(const ort::Api& api, ort::Status* status, const std::string& what = "");

class Runtime {
 public:
  // Loads `path`; if empty ORT_LIBRARY, what lies beside the program, or what the system finds. Throws Mistake for a
  // file that is not onnxruntime, std::runtime_error if it cannot be loaded here.
  explicit Runtime(const std::string& path);

  const ort::Api& api() const { return *loaded_.api; }
  const std::string& version() const { return loaded_.version; }
  const ort::Env* environment() const { return environment_.pointer; }

 private:
  struct Loaded {
    const ort::Api* api;
    std::string version;
  };

  static Loaded load(const std::string& path);

  Loaded loaded_;
  Owned<ort::Env, ort::ReleaseEnv> environment_;
};

// libbnas_ort.so: the kernels.
struct OperatorLibrary {
  std::string path;
  std::string isa;      // the path of the kernels that sessions made now use; empty: BNAS_ISA names none
  std::string version;  // empty: it does not say
  double (*bound_gmacs)(double seconds);  // null: it has none
};

// Where it is looked for if it is not named: beside this program.
std::string operators_beside();

// Throws Mistake for a file that is not the operator library, std::runtime_error if it cannot be loaded here.
OperatorLibrary load_operators(const std::string& path);

// Throws Mistake, naming the paths that there are, if BNAS_ISA names none of the library's.
void require_isa(const Runtime& runtime, const OperatorLibrary& library);

// The path with no symbolic link in it; as it is if there is no such file.
std::string absolute(const std::string& path);

}  // namespace bnas
