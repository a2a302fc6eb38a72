// Which operators of a TensorFlow Lite graph are ours, and which of their neighbours are computed with them.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "litert_abi.h"

namespace bnas::litert {

inline constexpr char kQuantize[] = "LceQuantize", kDequantize[] = "LceDequantize", kConv[] = "LceBconv2d",
                      kMaxPool[] = "LceBMaxPool2d";

// A node as the file has it.
struct Operation {
  int index = -1;
  int builtin = -1;
  std::string name;                  // of a custom operator
  std::vector<int> inputs, outputs;  // tensors, -1 for an absent one
  const void* options = nullptr;
  size_t options_size = 0;
  int activation = kNoActivation;  // of kAdd and kSub

  bool ours() const;
};

// Node `index`. Throws std::runtime_error if the context has none.
Operation operation_at(Context* context, int index);

// Tensor `index`; throws std::invalid_argument, naming `what`, if there is none.
Tensor& tensor_at(const Context* context, int index, const char* what);

int64_t element_count(const Tensor& tensor);  // -1 if it has no dims
size_t element_size(Type type);               // 0 if unknown

// A constant of the file with as many bytes as its dims say. Throws std::invalid_argument, naming `what`, otherwise.
const Tensor& constant_at(const Context* context, int index, Type type, const char* what);

// A binary convolution with what is computed in one go with it. Tensors are -1 where that part is absent.
//   input -> [- shift] -> [signs] -> convolution -> [+ residual] -> [- shift_in] -> [prelu] -> [+ shift_out] -> output
struct Unit {
  Operation conv;
  bool from_values = false;  // the signs are taken here
  int input = -1, residual = -1, output = -1;
  // Constants of one value, or one for each channel. negate_*: the file adds where we subtract, or the reverse.
  int shift = -1, shift_in = -1, slope = -1, shift_out = -1;
  bool negate_shift = false, negate_shift_in = false, negate_shift_out = false;
  bool relu = false;  // slope 0

  std::vector<int> nodes;  // in the order of the graph
};

// What a set of claimed nodes is: the unit around a convolution. Throws std::invalid_argument if it is none.
Unit unit_of(const Context* context, const std::vector<Operation>& operations);

// The sets of nodes to claim, each to become one partition. fuse: whether neighbours are computed with convolutions.
std::vector<std::vector<int>> partitions(Context* context, bool fuse);

}  // namespace bnas::litert
