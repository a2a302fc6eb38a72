// bnas-kernels: the kernels behind a pipe, so that a Python test can drive builds it cannot load (cross-built, under an
// emulator; with sanitizers). Reads requests from standard input, answers each on standard output, ends with
// the input. Its client is tests/runtime_bench/kernel_process.py.
//
// A message, in both directions, all little endian:
//   u32 bytes that follow
//   u32 texts, each: u32 bytes, the bytes
//   u32 integers, each: i64
//   u32 arrays, each: u8 type (0 float32, 1 uint8, 2 uint32, 3 int32, 4 int8), u32 rank, rank x i64 sizes, the values
//
// Requests: texts [operator, isa], isa "" for the fastest; an optional array may have no values (neutral then).
//   operator       integers                                          arrays
//   paths          -                                                 -
//   conv           strides(2) pads(4) dilations(2) groups            x w_packed shift scale bias residual slope
//                                                                    act_shift_in act_shift_out, all but two optional
//   conv_from_bits channels strides(2) pads(4) dilations(2) groups   x w_packed scale bias residual slope act_shift_in
//                                                                    act_shift_out, all but two optional
//   conv_bits      channels strides(2) pads(4) dilations(2) groups   x w_packed threshold
//   byte_conv      strides(2) pads(4) dilations(2) groups x_zero     x w scale bias slope act_shift_out x_scale
//                  y_zero                                            y_scale, four optional
//   image_conv     strides(2) pads(4) pool_kernel(2)                 x w bias slope act_shift_out, three optional
//                  pool_strides(2) pool_pads(4)
//   pack_signs     -                                                 x shift, the latter optional
//   max_pool_bits  kernel(2) strides(2) pads(4)                      x
// Answers: texts ["ok"], arrays [y]; of `paths`, texts ["ok", names...]; or texts ["error", what is wrong].
// A message that breaks this form ends the program with exit code 2.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "byte_conv.h"
#include "conv.h"
#include "dispatch.h"
#include "image_conv.h"
#include "shape.h"

namespace bnas {
namespace {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "messages are written as they lie in memory");

constexpr size_t kMaxBytes = size_t{1} << 30;  // of a message

// The stream cannot be followed any further.
struct BrokenStream : std::runtime_error {
  using std::runtime_error::runtime_error;
};

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

template <typename T>
constexpr uint8_t kType = 255;
template <>
constexpr uint8_t kType<float> = 0;
template <>
constexpr uint8_t kType<uint8_t> = 1;
template <>
constexpr uint8_t kType<uint32_t> = 2;
template <>
constexpr uint8_t kType<int32_t> = 3;
template <>
constexpr uint8_t kType<int8_t> = 4;
constexpr size_t kTypeBytes[] = {4, 1, 4, 4, 1};

// A block of its own and not a byte larger, so that AddressSanitizer sees a read past it.
struct Array {
  uint8_t type = 0;
  std::vector<int64_t> sizes;
  std::vector<uint8_t> bytes;

  int64_t count() const { return static_cast<int64_t>(bytes.size() / kTypeBytes[type]); }
};

struct Message {
  std::vector<std::string> texts;
  std::vector<int64_t> integers;
  std::vector<Array> arrays;
};

class Reader {
 public:
  explicit Reader(const std::vector<uint8_t>& bytes) : next_(bytes.data()), left_(bytes.size()) {}

  Message message() {
    Message m;
    for (uint32_t n = number<uint32_t>(); n > 0; --n) {
      const std::vector<uint8_t> text = take(number<uint32_t>());
      m.texts.emplace_back(text.begin(), text.end());
    }
    for (uint32_t n = number<uint32_t>(); n > 0; --n) m.integers.push_back(number<int64_t>());
    for (uint32_t n = number<uint32_t>(); n > 0; --n) m.arrays.push_back(array());
    if (left_ > 0) throw BrokenStream("a message is longer than what it says it holds");
    return m;
  }

 private:
  std::vector<uint8_t> take(size_t size) {
    if (size > left_) throw BrokenStream("a message is shorter than what it says it holds");
    std::vector<uint8_t> bytes(next_, next_ + size);
    next_ += size;
    left_ -= size;
    return bytes;
  }

  template <typename T>
  T number() {
    const std::vector<uint8_t> bytes = take(sizeof(T));
    T value;
    std::memcpy(&value, bytes.data(), sizeof(T));
    return value;
  }

  Array array() {
    Array a;
    a.type = number<uint8_t>();
    if (a.type >= sizeof(kTypeBytes) / sizeof(kTypeBytes[0])) throw BrokenStream("an array of unknown type");
    size_t bytes = kTypeBytes[a.type];
    for (uint32_t rank = number<uint32_t>(); rank > 0; --rank) {
      const int64_t size = number<int64_t>();
      if (size < 0 || (size > 0 && bytes > kMaxBytes / static_cast<size_t>(size))) {
        throw BrokenStream("an array of impossible size");
      }
      bytes *= static_cast<size_t>(size);
      a.sizes.push_back(size);
    }
    a.bytes = take(bytes);
    return a;
  }

  const uint8_t* next_;
  size_t left_;
};

template <typename T>
void append(std::vector<uint8_t>& bytes, T value) {
  const uint8_t* first = reinterpret_cast<const uint8_t*>(&value);
  bytes.insert(bytes.end(), first, first + sizeof(T));
}

std::vector<uint8_t> encode(const Message& m) {
  std::vector<uint8_t> bytes;
  append(bytes, static_cast<uint32_t>(m.texts.size()));
  for (const std::string& text : m.texts) {
    append(bytes, static_cast<uint32_t>(text.size()));
    bytes.insert(bytes.end(), text.begin(), text.end());
  }
  append(bytes, static_cast<uint32_t>(m.integers.size()));
  for (int64_t integer : m.integers) append(bytes, integer);
  append(bytes, static_cast<uint32_t>(m.arrays.size()));
  for (const Array& a : m.arrays) {
    append(bytes, a.type);
    append(bytes, static_cast<uint32_t>(a.sizes.size()));
    for (int64_t size : a.sizes) append(bytes, size);
    bytes.insert(bytes.end(), a.bytes.begin(), a.bytes.end());
  }
  return bytes;
}

bool read_exactly(void* target, size_t size) { return std::fread(target, 1, size, stdin) == size; }

// False at the end of the input.
bool receive(Message& message) {
  uint32_t size = 0;
  const size_t found = std::fread(&size, 1, sizeof(size), stdin);
  if (found == 0) return false;
  if (found < sizeof(size)) throw BrokenStream("the input ends within a message");
  if (size > kMaxBytes) throw BrokenStream("a message of " + std::to_string(size) + " bytes is too long");
  std::vector<uint8_t> bytes(size);
  if (size > 0 && !read_exactly(bytes.data(), size)) throw BrokenStream("the input ends within a message");
  message = Reader(bytes).message();
  return true;
}

void send(const Message& message) {
  const std::vector<uint8_t> bytes = encode(message);
  const uint32_t size = static_cast<uint32_t>(bytes.size());
  if (std::fwrite(&size, 1, sizeof(size), stdout) != sizeof(size) ||
      std::fwrite(bytes.data(), 1, bytes.size(), stdout) != bytes.size() || std::fflush(stdout) != 0) {
    throw BrokenStream("the answer cannot be written");
  }
}

template <typename T>
const T* values(const Array& array, const char* name) {
  if (array.type != kType<T>) refuse(std::string(name) + " has the wrong type");
  return reinterpret_cast<const T*>(array.bytes.data());
}

void expect_sizes(const Array& array, const char* name, const std::vector<int64_t>& wanted) {
  if (array.sizes != wanted) refuse(std::string(name) + " has the wrong shape");
}

PerChannel per_channel(const Array& array, const char* name, int64_t channels, const float* neutral) {
  const float* data = values<float>(array, name);
  if (array.count() == 0) return {neutral, 1};
  if (array.count() != 1 && array.count() != channels) refuse(std::string(name) + " has the wrong number of values");
  return {data, array.count()};
}

template <typename T>
Array result(std::vector<int64_t> sizes) {
  Array y;
  y.type = kType<T>;
  size_t bytes = sizeof(T);
  for (int64_t size : sizes) {
    if (size > 0 && bytes > kMaxBytes / 2 / static_cast<size_t>(size)) refuse("the result is too large");
    bytes *= static_cast<size_t>(size);
  }
  y.sizes = std::move(sizes);
  y.bytes.resize(bytes, 0xa5);  // what a kernel forgets to write is seen
  return y;
}

template <typename T>
T* target(Array& y) {
  return reinterpret_cast<T*>(y.bytes.data());
}

template <typename Shape>
void expect_valid(const Shape& shape) {
  const std::string error = check(shape);
  if (!error.empty()) refuse(error);
}

// integers: strides(2) pads(4) dilations(2) groups. Not checked yet.
ConvShape window_shape(const Array& x, int64_t channels, int64_t out_channels, int64_t kernel_h, int64_t kernel_w,
                       const int64_t* integers) {
  ConvShape s;
  s.batch = x.sizes[0], s.channels = channels, s.height = x.sizes[2], s.width = x.sizes[3];
  s.out_channels = out_channels, s.kernel_h = kernel_h, s.kernel_w = kernel_w;
  s.stride_h = integers[0], s.stride_w = integers[1];
  s.pad_top = integers[2], s.pad_left = integers[3], s.pad_bottom = integers[4], s.pad_right = integers[5];
  s.dilation_h = integers[6], s.dilation_w = integers[7];
  s.groups = integers[8];
  return s;
}

ConvShape conv_shape(const Array& x, int64_t channels, const Array& w_packed, const int64_t* integers) {
  if (x.sizes.size() != 4 || w_packed.sizes.size() != 4) refuse("x and w_packed must have 4 axes");
  const ConvShape s = window_shape(x, channels, w_packed.sizes[0], w_packed.sizes[1], w_packed.sizes[2], integers);
  expect_valid(s);
  expect_sizes(w_packed, "w_packed", {s.out_channels, s.kernel_h, s.kernel_w, ceil_div(s.group_channels(), 8)});
  return s;
}

// arrays: scale bias residual slope act_shift_in act_shift_out, the first of them at `first`.
// run(conv, affine, y) computes it, in place: y begins as the residual.
template <typename Run>
Array conv_to_float(const Path& path, const ConvShape& s, const Message& m, size_t first, const Run& run) {
  static constexpr float kZero = 0, kOne = 1;
  const Array* part = m.arrays.data() + first;
  const Array& residual = part[2];
  Affine affine{};
  affine.scale = per_channel(part[0], "scale", s.out_channels, &kOne);
  affine.bias = per_channel(part[1], "bias", s.out_channels, &kZero);
  affine.slope = per_channel(part[3], "slope", s.out_channels, &kOne);
  affine.shift_in = per_channel(part[4], "act_shift_in", s.out_channels, &kZero);
  affine.shift_out = per_channel(part[5], "act_shift_out", s.out_channels, &kZero);
  Array y = result<float>({s.batch, s.out_channels, s.out_height(), s.out_width()});
  if (residual.count() == 1) {
    affine.residual_value = *values<float>(residual, "residual");
  } else if (residual.count() > 1) {
    expect_sizes(residual, "residual", y.sizes);
    const float* data = values<float>(residual, "residual");
    affine.residual = std::copy(data, data + residual.count(), target<float>(y)) - residual.count();
  }
  run(BinaryConv(s, values<uint8_t>(m.arrays[1], "w_packed"), path), affine, target<float>(y));
  return y;
}

Array conv(const Path& path, const Message& m) {
  static constexpr float kZero = 0;
  const Array& x = m.arrays[0];
  const ConvShape s = conv_shape(x, x.sizes.size() == 4 ? x.sizes[1] : 0, m.arrays[1], m.integers.data());
  const PerChannel shift = per_channel(m.arrays[2], "shift", s.channels, &kZero);
  const Array& residual = m.arrays[5];
  const bool skips = residual.sizes == x.sizes && residual.count() > 1 && residual.bytes == x.bytes;
  return conv_to_float(path, s, m, 3, [&](const BinaryConv& conv, const Affine& affine, float* y) {
    conv.run(s, skips ? y : values<float>(x, "x"), shift, affine, y, Host{});
  });
}

Array conv_from_bits(const Path& path, const Message& m) {
  const Array& x = m.arrays[0];
  const ConvShape s = conv_shape(x, m.integers[0], m.arrays[1], m.integers.data() + 1);
  expect_sizes(x, "x", {s.batch, words_of(s.channels), s.height, s.width});
  return conv_to_float(path, s, m, 2, [&](const BinaryConv& conv, const Affine& affine, float* y) {
    conv.run_from_bits(s, values<uint32_t>(x, "x"), affine, y, Host{});
  });
}

Array conv_bits(const Path& path, const Message& m) {
  const Array &x = m.arrays[0], &w_packed = m.arrays[1], &threshold = m.arrays[2];
  const ConvShape s = conv_shape(x, m.integers[0], w_packed, m.integers.data() + 1);
  expect_sizes(x, "x", {s.batch, words_of(s.channels), s.height, s.width});
  if (threshold.count() != s.out_channels) refuse("threshold has the wrong number of values");
  Array y = result<uint32_t>({s.batch, words_of(s.out_channels), s.out_height(), s.out_width()});
  BinaryConv(s, values<uint8_t>(w_packed, "w_packed"), path)
      .run_bits(s, values<uint32_t>(x, "x"), values<int32_t>(threshold, "threshold"), target<uint32_t>(y), Host{});
  return y;
}

Levels levels_of(const Array& scale, int64_t zero, bool may_be_none) {
  if (scale.count() != 1 || zero < 0 || zero > 255) refuse("levels need one scale, and a zero from 0 to 255");
  const Levels levels{*values<float>(scale, "scale"), static_cast<int32_t>(zero)};
  const std::string error = check(levels, may_be_none);
  if (!error.empty()) refuse("a scale " + error);
  return levels;
}

Array byte_conv(const Path& path, const Message& m) {
  static constexpr float kZero = 0, kOne = 1;
  const Array &x = m.arrays[0], &w = m.arrays[1];
  if (x.sizes.size() != 4 || w.sizes.size() != 4) refuse("x and w must have 4 axes");
  const ConvShape s = window_shape(x, x.sizes[1], w.sizes[0], w.sizes[2], w.sizes[3], m.integers.data());
  const std::string error = check_bytes(s);
  if (!error.empty()) refuse(error);
  expect_sizes(w, "w", {s.out_channels, s.group_channels(), s.kernel_h, s.kernel_w});
  const Levels levels = levels_of(m.arrays[6], m.integers[9], false);
  const ByteAffine affine{per_channel(m.arrays[2], "scale", s.out_channels, &kOne),
                          per_channel(m.arrays[3], "bias", s.out_channels, &kZero),
                          per_channel(m.arrays[4], "slope", s.out_channels, &kOne),
                          per_channel(m.arrays[5], "act_shift_out", s.out_channels, &kZero),
                          levels_of(m.arrays[7], m.integers[10], true)};
  Array y = result<float>({s.batch, s.out_channels, s.out_height(), s.out_width()});
  ByteConv(s, values<int8_t>(w, "w"), path).run(s, values<float>(x, "x"), levels, affine, target<float>(y), Host{});
  return y;
}

Array image_conv(const Path& path, const Message& m) {
  static constexpr float kZero = 0, kOne = 1;
  const Array &x = m.arrays[0], &w = m.arrays[1];
  if (x.sizes.size() != 4 || w.sizes.size() != 4) refuse("x and w must have 4 axes");
  const std::vector<int64_t>& v = m.integers;
  const int64_t window[] = {v[0], v[1], v[2], v[3], v[4], v[5], 1, 1, 1};
  const ConvShape s = window_shape(x, x.sizes[1], w.sizes[0], w.sizes[2], w.sizes[3], window);
  const ImagePool pool{v[6], v[7], v[8], v[9], v[10], v[11], v[12], v[13]};
  const std::string error = check(s, pool);
  if (!error.empty()) refuse(error);
  expect_sizes(w, "w", {s.out_channels, s.channels, s.kernel_h, s.kernel_w});
  const ImageAffine affine{per_channel(m.arrays[2], "bias", s.out_channels, &kZero),
                           per_channel(m.arrays[3], "slope", s.out_channels, &kOne),
                           per_channel(m.arrays[4], "act_shift_out", s.out_channels, &kZero)};
  const PoolShape out = pool.over(s);
  Array y = result<float>({s.batch, s.out_channels, out.out_height(), out.out_width()});
  ImageConv(s, values<float>(w, "w"), path).run(s, pool, values<float>(x, "x"), affine, target<float>(y), Host{});
  return y;
}

Array pack(const Path& path, const Message& m) {
  static constexpr float kZero = 0;
  const Array& x = m.arrays[0];
  if (x.sizes.size() != 4) refuse("x must have 4 axes");
  ConvShape s;  // of a 1x1 convolution over x, for the limits of sizes
  s.batch = x.sizes[0], s.channels = x.sizes[1], s.height = x.sizes[2], s.width = x.sizes[3], s.out_channels = 1;
  expect_valid(s);
  Array bits = result<uint32_t>({s.batch, words_of(s.channels), s.height, s.width});
  pack_signs(path, s.batch, s.channels, s.height * s.width, values<float>(x, "x"),
             per_channel(m.arrays[1], "shift", s.channels, &kZero), target<uint32_t>(bits), Host{});
  return bits;
}

Array max_pool(const Path&, const Message& m) {
  const Array& x = m.arrays[0];
  const std::vector<int64_t>& v = m.integers;
  if (x.sizes.size() != 4) refuse("x must have 4 axes");
  PoolShape s;
  s.batch = x.sizes[0], s.words = x.sizes[1], s.height = x.sizes[2], s.width = x.sizes[3];
  s.kernel_h = v[0], s.kernel_w = v[1], s.stride_h = v[2], s.stride_w = v[3];
  s.pad_top = v[4], s.pad_left = v[5], s.pad_bottom = v[6], s.pad_right = v[7];
  expect_valid(s);
  Array y = result<uint32_t>({s.batch, s.words, s.out_height(), s.out_width()});
  max_pool_bits(s, values<uint32_t>(x, "x"), target<uint32_t>(y), Host{});
  return y;
}

Message answer(const Message& request) {
  static const struct {
    const char* name;
    size_t integers, arrays;
    Array (*run)(const Path& path, const Message& request);
  } operators[] = {{"conv", 9, 9, conv},
                   {"conv_from_bits", 10, 8, conv_from_bits},
                   {"conv_bits", 10, 3, conv_bits},
                   {"byte_conv", 11, 8, byte_conv},
                   {"image_conv", 14, 5, image_conv},
                   {"pack_signs", 0, 2, pack},
                   {"max_pool_bits", 8, 1, max_pool}};
  Message reply;
  reply.texts = {"ok"};
  if (request.texts.size() != 2) refuse("a request needs 2 texts: operator and isa");
  if (request.texts[0] == "paths") {
    for (const Path& known : paths()) reply.texts.push_back(known.name);
    return reply;
  }
  for (const auto& op : operators) {
    if (request.texts[0] != op.name) continue;
    if (request.integers.size() != op.integers || request.arrays.size() != op.arrays) {
      refuse(std::string(op.name) + " needs " + std::to_string(op.integers) + " integers and " +
             std::to_string(op.arrays) + " arrays");
    }
    reply.arrays.push_back(op.run(path(request.texts[1]), request));
    return reply;
  }
  refuse("there is no operator " + request.texts[0]);
}

int serve() {
  try {
    for (Message request; receive(request);) {
      Message reply;
      try {
        reply = answer(request);
      } catch (const BrokenStream&) {
        throw;
      } catch (const std::exception& error) {
        reply.texts = {"error", error.what()};
      }
      send(reply);
    }
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bnas-kernels: %s\n", error.what());
    return 2;
  }
}

}  // namespace
}  // namespace bnas

int main() { return bnas::serve(); }
