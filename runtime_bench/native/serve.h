// A server of runs: one command a line on standard input, one JSON object a line on standard output.
#pragma once

#include <string>

#include "runtime.h"

namespace bnas {

// The connection to whoever gives the commands: standard input and output, which nothing else may write to, and the
// signals that end a program. Made before any thread is.
class Connection {
 public:
  Connection();

  // The next line, without its end. False when the connection is over: no further whole line will come, the other
  // side is gone, or SIGTERM, SIGHUP or SIGINT came. A line of more than 64 KiB is left out, and `*line` empty and
  // `*too_long` true.
  bool read(std::string* line, bool* too_long);

  // False when the other side is gone.
  bool write(const std::string& line);

  // Throws Over when the connection is over. Asks at most every 100 ms, so it may be called between any two runs.
  void require();

  struct Over {};

 private:
  int input_, output_, signals_;
  std::string pending_;
  int64_t asked_ns_ = 0;
};

// Answers until the connection is over or `quit`; docs/kernels.md has the commands. `operators` may be null.
void serve(Connection* connection, const Runtime& runtime, const OperatorLibrary* operators);

}  // namespace bnas
