// JSON, as far as it is written here.
#pragma once

#include <cstdint>
#include <cstdio>
#include <initializer_list>
#include <string>
#include <utility>

namespace bnas::json {

// How many bytes the UTF-8 character at `at` has; 0 if there is none.
inline size_t utf8_length(const std::string& text, size_t at) {
  const auto byte = [&](size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
  const unsigned first = byte(at), second = byte(at + 1);
  if (first < 0x80) return 1;
  const size_t length = first < 0xc2 ? 0 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : first < 0xf5 ? 4 : 0;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(at + i) & 0xc0) != 0x80) return 0;
  }
  // Longer than need be, a surrogate, beyond the last character.
  if ((first == 0xe0 && second < 0xa0) || (first == 0xed && second > 0x9f)) return 0;
  if ((first == 0xf0 && second < 0x90) || (first == 0xf4 && second > 0x8f)) return 0;
  return length;
}

// Names of files may be any bytes: those that are no UTF-8 become U+FFFD.
inline std::string quoted(const std::string& text) {
  std::string json = "\"";
  for (size_t at = 0; at < text.size();) {
    const unsigned char code = static_cast<unsigned char>(text[at]);
    const size_t length = utf8_length(text, at);
    if (code < 32 || code == 127) {
      char escaped[8];
      std::snprintf(escaped, sizeof escaped, "\\u%04x", code);
      json += escaped;
    } else if (length == 0) {
      json += "\\ufffd";
    } else {
      if (code == '"' || code == '\\') json += '\\';
      json.append(text, at, length);
    }
    at += length ? length : 1;
  }
  return json + "\"";
}

inline std::string quoted_or_null(const std::string& text) { return text.empty() ? "null" : quoted(text); }

inline std::string number(double value) {
  char text[400];  // the largest double has 309 digits
  std::snprintf(text, sizeof text, "%.6f", value);
  return text;
}

// The items' JSON, in brackets: json_of(item).
template <typename Items, typename JsonOf>
std::string list(const Items& items, const JsonOf& json_of) {
  std::string json = "[";
  for (const auto& item : items) {
    if (json.size() > 1) json += ", ";
    json += json_of(item);
  }
  return json + "]";
}

template <typename Integers>
std::string integers(const Integers& values) {
  return list(values, [](int64_t value) { return std::to_string(value); });
}

// {"name": value, ...} of names and JSON.
inline std::string object(std::initializer_list<std::pair<std::string, std::string>> fields) {
  std::string json = "{";
  for (const auto& [name, value] : fields) json += (json.size() > 1 ? ", " : "") + quoted(name) + ": " + value;
  return json + "}";
}

}  // namespace bnas::json
