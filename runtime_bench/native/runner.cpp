// bnas-runner: times .onnx files on a device without Python; one, or as a server those that it is told to.
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "json.h"
#include "network.h"
#include "runtime.h"
#include "serve.h"
#include "system.h"

namespace bnas {
namespace {

constexpr char kUsage[] =
    "usage: bnas-runner MODEL.onnx [options]\n"
    "       bnas-runner --serve [--ort PATH] [--ops PATH | --no-ops] [--isa NAME] [--cpus LIST] [--remove-at-end "
    "FOLDER]\n"
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
    "  --cpus LIST       the processors to run on, such as 0,2-3; without: any\n"
    "  --serve           obey the commands on standard input, one a line, and answer with a line of JSON each\n"
    "  --remove-at-end F when it ends, remove the folder F, whose name begins with bnas-, with everything in it\n"
    "  --version         print the version\n"
    "Needs onnxruntime 1.17 or later; its Python wheels hold libonnxruntime.so from 1.20 on and need glibc 2.28.\n";

constexpr int kFailed = 1, kMistake = 2;  // exit codes
constexpr size_t kMinSamples = 30;

struct Options {
  std::string model, ort, ops, isa, cpus, remove_at_end;
  std::vector<std::string> inputs, outputs;
  bool json = false, no_ops = false, no_optimize = false, serve = false;
  int threads = 1;
  int64_t runs = -1, warmup = -1;
  double seconds = 2;
};

// Whether an option says something about the program and not about one model.
bool for_server(const std::string& name) {
  for (const char* option : {"--serve", "--ort", "--ops", "--no-ops", "--isa", "--cpus", "--remove-at-end"}) {
    if (name == option) return true;
  }
  return false;
}

Options parse(int argc, char** argv) {
  Options options;
  std::string one_model;  // what was given that says something about one model
  for (int i = 1; i < argc; ++i) {
    std::string name = argv[i];
    if (name.size() < 2 || name[0] != '-') {
      if (!options.model.empty()) throw Mistake("two models are named, " + options.model + " and " + name);
      options.model = one_model = name;
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
      if (!joined && i + 1 < argc) given = argv[++i];
      if (given.empty()) throw Mistake(name + " needs a value; see --help");
      return given;
    };
    if (name == "--threads") {
      options.threads = static_cast<int>(whole_number(name, value(), 1, kMostThreads));
    } else if (name == "--runs") {
      options.runs = whole_number(name, value(), 1, kManyRuns);
    } else if (name == "--warmup") {
      options.warmup = whole_number(name, value(), 0, kManyRuns);
    } else if (name == "--seconds") {
      options.seconds = positive(name, value(), 86400);
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
    } else if (name == "--cpus") {
      options.cpus = value();
    } else if (name == "--remove-at-end") {
      options.remove_at_end = value();
    } else if (name == "--serve" && !joined) {
      options.serve = true;
    } else if (name == "--json" && !joined) {
      options.json = true;
    } else if (name == "--no-ops" && !joined) {
      options.no_ops = true;
    } else if (name == "--no-optimize" && !joined) {
      options.no_optimize = true;
    } else {
      throw Mistake("unknown option " + std::string(argv[i]) + "; see --help");
    }
    if (!for_server(name)) one_model = name;
  }
  if (options.serve && !one_model.empty())
    throw Mistake(one_model + " is given with --serve, which names its models by command");
  if (!options.serve && !options.remove_at_end.empty()) throw Mistake("--remove-at-end is given without --serve");
  if (!options.serve && options.model.empty()) throw Mistake("no model is named; see --help");
  if (options.no_ops && !options.ops.empty()) throw Mistake("--ops and --no-ops exclude each other");
  return options;
}

std::vector<Array> inputs_of(const Options& options, const std::vector<Port>& ports) {
  if (options.inputs.empty()) return random_inputs(options.model, ports, "give one with --input FILE.npy");
  if (options.inputs.size() != ports.size()) {
    throw Mistake(options.model + " takes " + std::to_string(ports.size()) + " inputs, " +
                  std::to_string(options.inputs.size()) + " are given");
  }
  std::vector<Array> arrays;
  for (size_t i = 0; i < ports.size(); ++i) {
    const std::string& path = options.inputs[i];
    Array array = read_array(path);
    const Port& port = ports[i];
    const std::string wanted = options.model + " wants for its input '" + port.name + "' ";
    if (array.kind->type != port.type) {
      const ElementKind* kind = kind_of(port.type);
      throw Mistake(path + " is " + array.kind->name + ", " + wanted +
                    (kind ? kind->name : "elements of type " + std::to_string(port.type)));
    }
    if (!fits(array.dims, port)) {
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

struct Report {
  Options options;
  std::string engine, isa, version;
  double load_ms = 0, first_ms = 0;
  Memory before = {}, after = {};  // loading the model, the first run
  std::vector<int64_t> samples;
  std::vector<Port> inputs, outputs;
};

void print_json(const Report& r) {
  const auto bytes = [](int64_t peak) { return peak < 0 ? "null" : std::to_string(peak); };
  const std::string text = json::object({{"model", json::quoted(r.options.model)},
                                         {"engine", json::quoted(r.engine)},
                                         {"isa", json::quoted_or_null(r.isa)},
                                         {"onnxruntime", json::quoted(r.version)},
                                         {"runner", json::quoted(BNAS_VERSION)},
                                         {"threads", std::to_string(r.options.threads)},
                                         {"load_ms", json::number(r.load_ms)},
                                         {"first_ms", json::number(r.first_ms)},
                                         {"p10_ms", json::number(percentile_ms(r.samples, 10))},
                                         {"p50_ms", json::number(percentile_ms(r.samples, 50))},
                                         {"p90_ms", json::number(percentile_ms(r.samples, 90))},
                                         {"count", std::to_string(r.samples.size())},
                                         {"base_bytes", bytes(r.before.peak)},
                                         {"peak_bytes", bytes(r.after.peak)},
                                         {"inputs", ports_json(r.inputs)},
                                         {"outputs", ports_json(r.outputs)},
                                         {"samples_ns", json::integers(r.samples)}});
  std::puts(text.c_str());
}

void print_text(const Report& r) {
  std::printf("%s: %s, onnxruntime %s, %d thread%s\n", r.options.model.c_str(), r.engine.c_str(), r.version.c_str(),
              r.options.threads, r.options.threads == 1 ? "" : "s");
  std::printf("load %.1f ms, first run %.3f ms\n", r.load_ms, r.first_ms);
  std::printf("median %.3f ms, p10 %.3f, p90 %.3f, of %zu runs\n", percentile_ms(r.samples, 50),
              percentile_ms(r.samples, 10), percentile_ms(r.samples, 90), r.samples.size());
}

// The library that `--ops` names, else the one beside the program if there is one or there `must` be.
std::optional<OperatorLibrary> find_operators(const Options& options, bool must) {
  if (options.no_ops) return {};
  const std::string path = options.ops.empty() ? operators_beside() : options.ops;
  if (!must && options.ops.empty() && access(path.c_str(), R_OK) != 0) return {};
  return load_operators(path);
}

Report run(const Options& options) {
  const ModelFile model = read_model(options.model);
  std::optional<OperatorLibrary> operators;
  if (model.has_kernels()) operators = find_operators(options, true);
  const OperatorLibrary* kernels = operators ? &*operators : nullptr;
  const Runtime runtime(options.ort);
  if (kernels) require_isa(runtime, *kernels);
  Report report;
  report.options = options;
  report.engine = model.engine(kernels);
  report.isa = kernels ? kernels->isa : "";
  report.version = runtime.version();
  report.before = memory_in_use();
  Network network(runtime, options.model, {options.threads, !options.no_optimize, kernels ? kernels->path : "", ""});
  if (options.outputs.size() > network.outputs.size()) {
    throw Mistake(options.model + " gives " + std::to_string(network.outputs.size()) + " outputs, " +
                  std::to_string(options.outputs.size()) + " files are named");
  }
  std::vector<Array> arrays = inputs_of(options, network.inputs);
  report.inputs = network.inputs;
  for (size_t i = 0; i < arrays.size(); ++i) report.inputs[i].dims = arrays[i].dims;
  network.set_inputs(std::move(arrays));
  report.load_ms = network.load_ms;
  report.first_ms = static_cast<double>(network.run()) / 1e6;
  report.after = memory_in_use();
  for (size_t i = 0; i < network.outputs.size(); ++i) {
    const void* data = nullptr;
    const Port port = network.result(i, &data);
    report.outputs.push_back(port);
    if (i >= options.outputs.size()) continue;
    if (!data) throw std::runtime_error("output '" + port.name + "' is of a type that cannot be written");
    write_array(options.outputs[i], *kind_of(port.type), port.dims, data);
  }
  report.samples = time_runs(&network, options);
  return report;
}

void serve(const Options& options) {
  Connection connection;
  const FolderToRemove folder(options.remove_at_end);
  if (!options.cpus.empty()) pin_to(options.cpus);
  const std::optional<OperatorLibrary> operators = find_operators(options, false);
  const Runtime runtime(options.ort);
  if (operators) require_isa(runtime, *operators);
  serve(&connection, runtime, operators ? &*operators : nullptr);
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
    if (!options.isa.empty()) setenv("BNAS_ISA", options.isa.c_str(), 1);
    if (options.serve) return serve(options), 0;
    if (!options.cpus.empty()) pin_to(options.cpus);
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
