#include "serve.h"

#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <new>
#include <stdexcept>
#include <utility>
#include <vector>

#include "json.h"
#include "network.h"
#include "system.h"

namespace bnas {
namespace {

constexpr size_t kMostLine = 64 << 10;
constexpr int64_t kAskEvery = 100'000'000;  // ns
constexpr double kSlice = 0.1;              // s; of what cannot be stopped
constexpr int64_t kMostSamples = 256;       // of one run, where the network takes any number: they need memory

using Fields = std::vector<std::string>;

Fields split(const std::string& line) {
  Fields fields(1);
  for (const char c : line) {
    if (c == '\t') {
      fields.emplace_back();
    } else {
      fields.back().push_back(c);
    }
  }
  return fields;
}

std::string or_null(int64_t value) { return value < 0 ? "null" : std::to_string(value); }

// Whether onnxruntime, which says nothing of a file that it cannot write, wrote the end of its list of events: a
// bracket on a line of its own. Those within an event, which has one line, may be the last bytes of a cut file.
bool whole_trace(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  file.seekg(-3, std::ios::end);
  const std::string end{std::istreambuf_iterator<char>(file), {}};
  return end == "\n]\n";
}

class Server {
 public:
  Server(Connection* connection, const Runtime& runtime, const OperatorLibrary* operators)
      : connection_(*connection), runtime_(runtime), operators_(operators) {}

  // The answer to a command. Throws Mistake and std::exception for what fails, Connection::Over.
  std::string answer(const std::string& line) {
    struct Command {
      Fields parameters;
      std::string (Server::*run)(const Fields& given);
    };
    static const std::map<std::string, Command> kCommands = {
        {"hello", {{}, &Server::hello}},
        {"open", {{"ID", "MODEL", "THREADS", "KERNELS"}, &Server::open}},
        {"time", {{"ID", "UNTIMED", "TIMED"}, &Server::time}},
        {"infer", {{"ID", "INPUT.npy", "OUTPUT.npy"}, &Server::infer}},
        {"close", {{"ID"}, &Server::close}},
        {"memory", {{}, &Server::memory}},
        {"profile", {{"MODEL", "THREADS", "KERNELS", "RUNS", "PREFIX"}, &Server::profile}},
        {"bound", {{"SECONDS"}, &Server::bound}},
    };
    if (line.find('\0') != std::string::npos) throw Mistake("a line holds a byte of zero");
    Fields fields = split(line);
    const auto found = kCommands.find(fields[0]);
    if (found == kCommands.end()) {
      std::string names;
      for (const auto& [name, command] : kCommands) names += name + ", ";
      throw Mistake("'" + fields[0].substr(0, 40) + "' is not one of the commands " + names + "quit");
    }
    fields.erase(fields.begin());
    const Fields& wanted = found->second.parameters;
    if (fields.size() != wanted.size() || std::count(fields.begin(), fields.end(), "")) {
      std::string usage = found->first;
      for (const std::string& name : wanted) usage += " " + name;
      throw Mistake("expected, with tabs in between: " + usage);
    }
    return (this->*found->second.run)(fields);
  }

 private:
  struct Open {
    std::string path;
    std::unique_ptr<Network> network;
  };

  std::string hello(const Fields&) {
    utsname system = {};
    uname(&system);
    return json::object({{"runner", json::quoted(BNAS_VERSION)},
                         {"onnxruntime", json::quoted(runtime_.version())},
                         {"isa", json::quoted_or_null(operators_ ? operators_->isa : "")},
                         {"operators", json::quoted_or_null(operators_ ? operators_->version : "")},
                         {"cpus", json::integers(allowed_cpus())},
                         {"arch", json::quoted(system.machine)}});
  }

  std::string open(const Fields& given) {
    const ModelFile model = read_model(given[1]);
    const OperatorLibrary* kernels = kernels_for(model, given[3]);
    Open fresh{model.path, load(model, given[2], kernels, "")};
    const Network& network = *fresh.network;
    std::string metadata;
    for (const auto& [key, value] : model.metadata) {
      metadata += (metadata.empty() ? "" : ", ") + json::quoted(key) + ": " + json::quoted(value);
    }
    const std::string text = json::object({{"engine", json::quoted(model.engine(kernels))},
                                           {"isa", json::quoted_or_null(kernels ? kernels->isa : "")},
                                           {"load_ms", json::number(network.load_ms)},
                                           {"inputs", ports_json(network.inputs)},
                                           {"outputs", ports_json(network.outputs)},
                                           {"metadata", "{" + metadata + "}"}});
    networks_[given[0]] = std::move(fresh);
    return text;
  }

  std::string time(const Fields& given) {
    Network& network = *find(given[0]).network;
    const int64_t untimed = whole_number("UNTIMED", given[1], 0, kManyRuns);
    const int64_t timed = whole_number("TIMED", given[2], 1, kManyRuns);
    run(&network, untimed);
    return json::object({{"samples_ns", json::integers(run(&network, timed))}});
  }

  std::string infer(const Fields& given) {
    const Open& opened = find(given[0]);
    const Network& network = *opened.network;
    if (network.inputs.size() != 1) {
      throw Mistake(opened.path + " has " + std::to_string(network.inputs.size()) + " inputs, infer gives one");
    }
    const Array array = read_array(given[1]);
    const Port& port = network.inputs[0];
    const int64_t samples = array.dims.empty() ? 0 : array.dims[0];
    const ElementKind* kind = kind_of(port.type);
    if (array.kind->type != port.type || samples == 0 || !fits(array.dims, port, 1)) {
      throw Mistake(given[1] + " is " + array.kind->name + " " + shape_text(array.dims) + ", " + opened.path +
                    " takes " + (kind ? kind->name : "another type") + " " + shape_text(port.dims) +
                    ", the first axis being that of samples");
    }
    const int64_t step = port.dims[0] < 0 ? std::min(samples, kMostSamples) : port.dims[0];
    if (port.dims[0] >= 0 && (step == 0 || samples % step)) {
      throw Mistake(given[1] + " has " + std::to_string(samples) + " samples, " + opened.path +
                    " takes a multiple of " + std::to_string(step));
    }
    Array found;
    int64_t taken = 0;
    for (int64_t first = 0; first < samples; first += step) {
      connection_.require();
      taken += network.infer(array, first, std::min(step, samples - first), &found);
    }
    write_array(given[2], *found.kind, found.dims, found.data.data());
    return json::object(
        {{"ms", json::number(static_cast<double>(taken) / 1e6)}, {"shape", json::integers(found.dims)}});
  }

  std::string close(const Fields& given) {
    find(given[0]);
    networks_.erase(given[0]);
    return "{}";
  }

  std::string memory(const Fields&) {
    const Memory memory = memory_in_use();
    return json::object({{"peak_bytes", or_null(memory.peak)}, {"resident_bytes", or_null(memory.resident)}});
  }

  std::string profile(const Fields& given) {
    const int64_t runs = whole_number("RUNS", given[3], 1, kManyRuns);
    const ModelFile model = read_model(given[0]);
    const OperatorLibrary* kernels = kernels_for(model, given[2]);
    const std::string folder = given[4].substr(0, given[4].rfind('/') + 1);
    if (access(folder.empty() ? "." : folder.c_str(), W_OK) != 0) {
      throw Mistake(given[4] + " cannot be written: " + std::strerror(errno));
    }
    const std::unique_ptr<Network> network = load(model, given[1], kernels, given[4]);
    run(network.get(), runs);
    const std::string file = network->end_profile();
    if (!whole_trace(file)) {
      unlink(file.c_str());
      throw std::runtime_error(file + " is not whole; is the disk full?");
    }
    return json::object({{"file", json::quoted(file)}});
  }

  std::string bound(const Fields& given) {
    double seconds = positive("SECONDS", given[0], 60), best = 0;
    for (; operators_ && operators_->bound_gmacs && seconds > 0; seconds -= kSlice) {
      connection_.require();
      best = std::max(best, operators_->bound_gmacs(std::min(seconds, kSlice)));
      if (best == 0) break;
    }
    return json::object({{"gmac_s", best > 0 ? json::number(best) : "null"}});
  }

  // The library that runs the operators of a file if its kernels are wanted; null for a file without any.
  const OperatorLibrary* kernels_for(const ModelFile& model, const std::string& wanted) const {
    const bool kernels = whole_number("KERNELS", wanted, 0, 1) == 1;
    if (!kernels || !model.has_kernels()) return nullptr;
    if (operators_) return operators_;
    throw Mistake("there is no operator library to run " + model.path +
                  "; name one with --ops, or leave its kernels out with KERNELS 0");
  }

  std::unique_ptr<Network> load(const ModelFile& model, const std::string& threads, const OperatorLibrary* kernels,
                                const std::string& profile) const {
    SessionSettings settings;
    settings.threads = static_cast<int>(whole_number("THREADS", threads, 1, kMostThreads));
    settings.operators = kernels ? kernels->path : "";
    settings.profile = profile;
    auto network = std::make_unique<Network>(runtime_, model.path, settings);
    network->set_inputs(random_inputs(model.path, network->inputs, "export it with fixed ones"));
    return network;
  }

  std::vector<int64_t> run(Network* network, int64_t times) {
    std::vector<int64_t> samples;
    samples.reserve(static_cast<size_t>(std::min<int64_t>(times, 1 << 16)));
    for (int64_t i = 0; i < times; ++i) {
      connection_.require();
      samples.push_back(network->run());
    }
    return samples;
  }

  const Open& find(const std::string& id) const {
    const auto found = networks_.find(id);
    if (found == networks_.end()) throw Mistake("nothing is open as '" + id + "'");
    return found->second;
  }

  Connection& connection_;
  const Runtime& runtime_;
  const OperatorLibrary* operators_;
  std::map<std::string, Open> networks_;
};

std::string failure(const std::string& kind, const std::string& text) {
  return json::object({{"error", json::quoted(one_line(text))}, {"kind", json::quoted(kind)}});
}

std::string answer_to(Server* server, const std::string& line) {
  try {
    return server->answer(line);
  } catch (const Mistake& error) {
    return failure("mistake", error.what());
  } catch (const std::bad_alloc&) {
    return failure("failed", "not enough memory");
  } catch (const std::exception& error) {
    return failure("failed", error.what());
  }
}

}  // namespace

Connection::Connection() {
  sigset_t ending;
  sigemptyset(&ending);
  for (const int signal : {SIGTERM, SIGHUP, SIGINT}) sigaddset(&ending, signal);
  sigprocmask(SIG_BLOCK, &ending, nullptr);
  signal(SIGPIPE, SIG_IGN);
  signals_ = signalfd(-1, &ending, SFD_CLOEXEC);
  input_ = STDIN_FILENO;
  // What a library prints goes where errors go.
  output_ = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3);
  if (signals_ < 0 || output_ < 0) throw std::runtime_error(std::string("cannot serve: ") + std::strerror(errno));
  dup2(STDERR_FILENO, STDOUT_FILENO);
}

bool Connection::read(std::string* line, bool* too_long) {
  *too_long = false;
  for (;;) {
    const size_t end = pending_.find('\n');
    if (end != std::string::npos) {
      *too_long = *too_long || end > kMostLine;
      line->assign(pending_, 0, *too_long ? 0 : end);
      pending_.erase(0, end + 1);
      return true;
    }
    if (pending_.size() > kMostLine) {
      *too_long = true;
      pending_.clear();
    }
    pollfd ready[] = {{input_, POLLIN, 0}, {signals_, POLLIN, 0}, {output_, 0, 0}};
    if (poll(ready, 3, -1) < 0 && errno != EINTR) return false;
    if (ready[1].revents || ready[2].revents) return false;
    if (!ready[0].revents) continue;
    char some[1 << 14];
    const ssize_t count = ::read(input_, some, sizeof some);
    if (count == 0 || (count < 0 && errno != EINTR && errno != EAGAIN)) return false;
    if (count > 0) pending_.append(some, static_cast<size_t>(count));
  }
}

bool Connection::write(const std::string& line) {
  const std::string text = line + "\n";
  for (size_t at = 0; at < text.size();) {
    pollfd ready[] = {{output_, POLLOUT, 0}, {signals_, POLLIN, 0}};
    if ((poll(ready, 2, -1) < 0 && errno != EINTR) || ready[1].revents) return false;
    if (!ready[0].revents) continue;
    // A pipe that is ready takes this many bytes without waiting, so a reader who sleeps holds no signal up.
    const ssize_t count = ::write(output_, text.data() + at, std::min<size_t>(text.size() - at, PIPE_BUF));
    if (count < 0 && errno != EINTR && errno != EAGAIN) return false;
    if (count > 0) at += static_cast<size_t>(count);
  }
  return true;
}

void Connection::require() {
  const int64_t now = now_ns();
  if (now - asked_ns_ < kAskEvery) return;
  asked_ns_ = now;
  pollfd state[] = {{input_, 0, 0}, {signals_, POLLIN, 0}, {output_, 0, 0}};
  if (poll(state, 3, 0) > 0) throw Over();
}

void serve(Connection* connection, const Runtime& runtime, const OperatorLibrary* operators) {
  Server server(connection, runtime, operators);
  try {
    std::string line;
    for (bool too_long = false; connection->read(&line, &too_long) && line != "quit";) {
      const std::string answer =
          too_long ? failure("mistake", "a line has more than " + std::to_string(kMostLine) + " bytes")
                   : answer_to(&server, line);
      if (!connection->write(answer)) return;
    }
  } catch (const Connection::Over&) {
  }
}

}  // namespace bnas
