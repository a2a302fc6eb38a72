#include "runtime.h"

#include <dlfcn.h>
#include <glob.h>
#include <limits.h>
#include <stdlib.h>
#include <unistd.h>
#ifdef __GLIBC__
#include <gnu/libc-version.h>
#endif

#include <cerrno>
#include <cstring>
#include <memory>
#include <vector>

namespace bnas {
namespace {

std::string program_folder() {
  char path[PATH_MAX];
  const ssize_t length = readlink("/proc/self/exe", path, sizeof path);
  const std::string whole(path, length > 0 && length < PATH_MAX ? static_cast<size_t>(length) : 0);
  return whole.substr(0, whole.rfind('/') + 1);
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

template <typename Function>
Function function_of(void* library, const char* name) {
  return reinterpret_cast<Function>(dlsym(library, name));
}

}  // namespace

void require_ok(const ort::Api& api, ort::Status* status, const std::string& what) {
  if (!status) return;
  const std::string text = ort::GetErrorMessage(api, status);
  ort::ReleaseStatus(api, status);
  throw std::runtime_error((what.empty() ? "" : what + ": ") + text);
}

Runtime::Runtime(const std::string& path) : loaded_(load(path)), environment_(api()) {
  require_ok(api(), ort::CreateEnv(api(), ort::kLogFatal, "bnas-runner", &environment_.pointer),
             "onnxruntime cannot start");
}

Runtime::Loaded Runtime::load(const std::string& given) {
  const char* variable = std::getenv("ORT_LIBRARY");
  std::string path = !given.empty() ? given : variable ? variable : "";
  if (!path.empty() && access(path.c_str(), R_OK) != 0) {
    throw Mistake((given.empty() ? "ORT_LIBRARY=" : "--ort ") + path + " cannot be read: " + std::strerror(errno));
  }
  if (path.empty()) path = onnxruntime_beside();
  setenv("ORT_DISABLE_TELEMETRY", "1", 0);  // it would send events, and leave an identifier in the home folder
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
  const auto base_of = function_of<const ort::ApiBase* (*)()>(library, "OrtGetApiBase");
  if (!base_of) throw Mistake(path + " is not onnxruntime: it has no OrtGetApiBase");
  const ort::ApiBase* base = base_of();
  const Loaded loaded{base->get_api(ort::kApiVersion), base->version()};
  if (loaded.api) return loaded;
  throw std::runtime_error("onnxruntime 1.17 or later is needed, " + path + " is " + loaded.version);
}

std::string operators_beside() { return program_folder() + "libbnas_ort.so"; }

OperatorLibrary load_operators(const std::string& path) {
  if (access(path.c_str(), R_OK) != 0) {
    throw Mistake(path + " cannot be read: " + std::strerror(errno) +
                  "; name the operator library with --ops, or run without its kernels with --no-ops");
  }
  OperatorLibrary found{absolute(path), "", "", nullptr};
  void* library = dlopen(found.path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) throw std::runtime_error("the operator library cannot be loaded: " + std::string(dlerror()));
  const auto isa = function_of<const char* (*)()>(library, "bnas_isa");
  const auto version = function_of<const char* (*)()>(library, "bnas_native_version");
  if (!isa) throw Mistake(path + " is not the operator library of bnas: it has no bnas_isa");
  found.isa = isa();
  if (version) found.version = version();
  found.bound_gmacs = function_of<double (*)(double)>(library, "bnas_bound_gmacs");
  return found;
}

void require_isa(const Runtime& runtime, const OperatorLibrary& library) {
  if (!library.isa.empty()) return;
  const ort::Api& api = runtime.api();
  Owned<ort::SessionOptions, ort::ReleaseSessionOptions> options(api);
  require_ok(api, ort::CreateSessionOptions(api, &options.pointer));
  try {
    require_ok(api, ort::RegisterCustomOpsLibrary_V2(api, options.pointer, library.path.c_str()));
  } catch (const std::runtime_error& error) {
    throw Mistake(error.what());
  }
}

std::string absolute(const std::string& path) {
  const std::unique_ptr<char, decltype(&free)> full(realpath(path.c_str(), nullptr), free);
  return full ? full.get() : path;
}

}  // namespace bnas
