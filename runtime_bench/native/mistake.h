// What a user gives and gets wrong.
#pragma once

#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace bnas {

// Its text is one line with the value and the remedy.
struct Mistake : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Throws Mistake for what is no whole number or not from `least` to `most`; `what` names it.
inline int64_t whole_number(const std::string& what, const std::string& text, int64_t least, int64_t most) {
  char* end = nullptr;
  errno = 0;
  const long long value = std::strtoll(text.c_str(), &end, 10);
  if (text.empty() || *end || errno || value < least || value > most) {
    throw Mistake(what + " is '" + text + "', expected a number from " + std::to_string(least) + " to " +
                  std::to_string(most));
  }
  return value;
}

// Throws Mistake for what is no number above 0 and at most `most`.
inline double positive(const std::string& what, const std::string& text, int most) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (!text.empty() && !*end && value > 0 && value <= most) return value;
  throw Mistake(what + " is '" + text + "', expected a number above 0, at most " + std::to_string(most));
}

inline std::string one_line(std::string text) {
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < 32 || c == 127) c = ' ';
  }
  return text;
}

}  // namespace bnas
