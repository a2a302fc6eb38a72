// Arrays in numpy's .npy files: those element types that networks here take and give.
#pragma once

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "ort_abi.h"

namespace bnas {

struct ElementKind {
  ort::ElementType type;
  const char* name;
  const char* descr;  // as .npy says it
  size_t bytes;
};

inline constexpr ElementKind kElementKinds[] = {
    {ort::kFloat, "float32", "<f4", 4}, {ort::kDouble, "float64", "<f8", 8}, {ort::kFloat16, "float16", "<f2", 2},
    {ort::kUint8, "uint8", "|u1", 1},   {ort::kInt8, "int8", "|i1", 1},      {ort::kBool, "bool", "|b1", 1},
    {ort::kUint16, "uint16", "<u2", 2}, {ort::kInt16, "int16", "<i2", 2},    {ort::kUint32, "uint32", "<u4", 4},
    {ort::kInt32, "int32", "<i4", 4},   {ort::kUint64, "uint64", "<u8", 8},  {ort::kInt64, "int64", "<i8", 8},
};

// "float32, float64, ...": what there is.
inline std::string kind_names() {
  std::string names;
  for (const ElementKind& kind : kElementKinds) names += (names.empty() ? "" : ", ") + std::string(kind.name);
  return names;
}

// Null for a type that is not among them.
inline const ElementKind* kind_of(int type) {
  for (const ElementKind& kind : kElementKinds) {
    if (kind.type == type) return &kind;
  }
  return nullptr;
}

inline std::string shape_text(const std::vector<int64_t>& dims) {
  std::string text;
  for (int64_t size : dims) text += (text.empty() ? "" : ", ") + std::to_string(size);
  return "[" + text + "]";
}

// Bytes of an array; throws std::length_error beyond 2^36 of them, or if a size is negative.
inline size_t bytes_of(const std::vector<int64_t>& dims, size_t element) {
  constexpr int64_t kMost = int64_t{1} << 36;
  int64_t bytes = static_cast<int64_t>(element);
  for (int64_t size : dims) {
    if (size == 0) return 0;
  }
  for (int64_t size : dims) {
    if (size < 0 || size > kMost / bytes) throw std::length_error("shape " + shape_text(dims) + " is too large");
    bytes *= size;
  }
  return static_cast<size_t>(bytes);
}

struct Array {
  const ElementKind* kind = nullptr;
  std::vector<int64_t> dims;
  std::vector<uint8_t> data;
};

namespace npy {

// The text of `key` in a header such as {'descr': '<f4', 'fortran_order': False, 'shape': (1, 3), }, blanks skipped.
inline std::string field(const std::string& header, const std::string& key) {
  size_t at = header.find("'" + key + "'");
  if (at != std::string::npos) at = header.find(':', at);
  if (at != std::string::npos) at = header.find_first_not_of(' ', at + 1);
  if (at == std::string::npos) throw std::invalid_argument("its header has no " + key);
  const size_t end = header[at] == '(' ? header.find(')', at) : header.find_first_of(",}", at);
  if (end == std::string::npos) throw std::invalid_argument("its header ends too early");
  return header.substr(at, end - at);
}

inline std::vector<int64_t> sizes(const std::string& tuple) {
  std::vector<int64_t> dims;
  for (size_t at = 1; at < tuple.size();) {
    const size_t digits = tuple.find_first_not_of("0123456789", at);
    const size_t end = digits == std::string::npos ? tuple.size() : digits;
    if (end > at) {
      if (end - at > 18) throw std::invalid_argument("its shape is too large");
      dims.push_back(std::stoll(tuple.substr(at, end - at)));
      at = end;
    } else if (tuple[at] == ',' || tuple[at] == ' ') {
      ++at;
    } else {
      throw std::invalid_argument("its shape is " + tuple);
    }
  }
  return dims;
}

// Throws std::invalid_argument for what is no such file, std::runtime_error for one that cannot be read.
inline Array parse(std::vector<uint8_t> file) {
  constexpr char kMagic[] = "\x93NUMPY";
  if (file.size() < 12 || std::memcmp(file.data(), kMagic, 6) != 0) throw std::invalid_argument("it is no .npy file");
  const bool wide = file[6] >= 2;  // the header's length has four bytes, not two
  const size_t start = wide ? 12 : 10;
  size_t length = file[8] | file[9] << 8;
  if (wide) length |= static_cast<size_t>(file[10]) << 16 | static_cast<size_t>(file[11]) << 24;
  if (length > file.size() - start) throw std::invalid_argument("it ends within its header");
  const std::string header(file.begin() + start, file.begin() + start + length);

  Array array;
  const std::string descr = field(header, "descr");
  for (const ElementKind& kind : kElementKinds) {
    if (descr == std::string("'") + kind.descr + "'") array.kind = &kind;
  }
  if (!array.kind) {
    throw std::invalid_argument("its elements are " + descr + ", expected one of " + kind_names());
  }
  if (field(header, "fortran_order") != "False")
    throw std::invalid_argument("it is in Fortran order, expected C order");
  const std::string shape = field(header, "shape");
  if (shape[0] != '(') throw std::invalid_argument("its shape is " + shape);
  array.dims = sizes(shape);
  const size_t bytes = bytes_of(array.dims, array.kind->bytes), rest = file.size() - start - length;
  if (rest != bytes) {
    throw std::invalid_argument("it holds " + std::to_string(rest) + " bytes, expected " + std::to_string(bytes) +
                                " for " + shape_text(array.dims));
  }
  file.erase(file.begin(), file.end() - static_cast<std::ptrdiff_t>(bytes));  // not a second copy of what may be large
  array.data = std::move(file);
  return array;
}

// Whole or not at all: under another name first. Throws std::runtime_error.
inline void write(const std::string& path, const ElementKind& kind, const std::vector<int64_t>& dims,
                  const void* data) {
  std::string shape;
  for (int64_t size : dims) shape += std::to_string(size) + ", ";
  std::string header =
      std::string("{'descr': '") + kind.descr + "', 'fortran_order': False, 'shape': (" + shape + "), }";
  header.append(63 - (10 + header.size()) % 64, ' ');
  header += '\n';
  const char start[] = {'\x93',
                        'N',
                        'U',
                        'M',
                        'P',
                        'Y',
                        1,
                        0,
                        static_cast<char>(header.size() & 255),
                        static_cast<char>(header.size() >> 8)};
  const std::string unfinished = path + ".part";
  std::ofstream file(unfinished, std::ios::binary);
  file.write(start, sizeof start).write(header.data(), static_cast<std::streamsize>(header.size()));
  file.write(static_cast<const char*>(data), static_cast<std::streamsize>(bytes_of(dims, kind.bytes)));
  file.close();
  if (!file || std::rename(unfinished.c_str(), path.c_str()) != 0) {
    const std::string why = std::strerror(errno);
    std::remove(unfinished.c_str());
    throw std::runtime_error(path + " cannot be written: " + why);
  }
}

}  // namespace npy
}  // namespace bnas
