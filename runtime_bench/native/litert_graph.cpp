#include "litert_graph.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace bnas::litert {
namespace {

constexpr int kMostAxes = 8;  // of a tensor that makes sense here
constexpr int kMostNodes = 1 << 24;

std::vector<int> list_of(const IntArray* array) {
  if (!array) return {};
  if (array->size < 0 || array->size > kMostNodes) throw std::runtime_error("a list of the graph has no sane size");
  return std::vector<int>(array->data, array->data + array->size);
}

bool is_float(const Tensor& tensor) { return tensor.type == kFloat32; }

bool same_dims(const Tensor& a, const Tensor& b) {
  return a.dims && b.dims && a.dims->size == b.dims->size &&
         std::equal(a.dims->data, a.dims->data + a.dims->size, b.dims->data);
}

bool is_constant(const Tensor& tensor) { return tensor.allocation_type == kReadOnly; }

// Whether `index` is a float constant of one value, or of one for each of `channels`.
bool per_channel(const Context* context, int index, int64_t channels) {
  if (index < 0 || static_cast<size_t>(index) >= context->tensors_size) return false;
  const Tensor& tensor = context->tensors[index];
  if (!is_float(tensor) || !is_constant(tensor)) return false;
  const int64_t count = element_count(tensor);
  return count == 1 || (count == channels && tensor.dims->data[tensor.dims->size - 1] == channels);
}

int64_t channels_of(const Tensor& tensor) {
  return tensor.dims && tensor.dims->size > 0 ? tensor.dims->data[tensor.dims->size - 1] : 0;
}

// Fills a unit from both ends of its convolution, one node at a time; each function says whether the node fits.
class UnitBuilder {
 public:
  UnitBuilder(const Context* context, const Operation& conv) : context_(context) {
    if (conv.inputs.empty()) throw std::invalid_argument("it has no inputs");
    if (conv.outputs.size() != 1) {
      throw std::invalid_argument("it has " + std::to_string(conv.outputs.size()) + " outputs, expected 1");
    }
    unit.conv = conv;
    unit.input = conv.inputs[0];
    unit.output = conv.outputs[0];
    unit.nodes = {conv.index};
  }

  // `node` makes unit.input.
  bool put_in_front(const Operation& node) {
    if (node.outputs != std::vector<int>{unit.input}) return false;
    if (is_constant(tensor_at(context_, unit.input, "x"))) return false;  // it is refused where it is written
    if (node.name == kQuantize && node.inputs.size() == 1) {
      if (unit.from_values || !is_float(tensor_at(context_, node.inputs[0], "x"))) return false;
      unit.from_values = true;
      return take_front(node, node.inputs[0]);
    }
    const bool adds = node.builtin == kAdd;
    if (!unit.from_values || unit.shift >= 0 || (!adds && node.builtin != kSub) || node.inputs.size() != 2)
      return false;
    if (node.activation != kNoActivation) return false;
    const Tensor& x = tensor_at(context_, node.inputs[0], "x");
    const Tensor& difference = tensor_at(context_, unit.input, "x - shift");
    if (!is_float(x) || !same_dims(x, difference) || !per_channel(context_, node.inputs[1], channels_of(x)))
      return false;
    unit.shift = node.inputs[1];
    unit.negate_shift = adds;
    return take_front(node, node.inputs[0]);
  }

  // `node` reads unit.output.
  bool put_behind(const Operation& node) {
    if (node.outputs.size() != 1 || node.inputs.empty()) return false;
    const Tensor& before = tensor_at(context_, unit.output, "y");
    const Tensor& after = tensor_at(context_, node.outputs[0], "y");
    if (!is_float(before) || !is_float(after) || !same_dims(before, after) || is_constant(before)) return false;
    const bool activated = unit.slope >= 0 || unit.relu;
    if (node.builtin == kRelu && !activated && unit.shift_out < 0) {
      unit.relu = true;
      return take_behind(node);
    }
    if (node.inputs.size() != 2) return false;
    const int other = node.inputs[0] == unit.output ? node.inputs[1] : node.inputs[0];
    if (other == unit.output) return false;
    if (node.builtin == kPrelu) {
      if (activated || node.inputs[0] != unit.output || !per_channel(context_, other, channels_of(before)))
        return false;
      unit.slope = other;
      return take_behind(node);
    }
    const bool adds = node.builtin == kAdd;
    if ((!adds && node.builtin != kSub) || (!adds && node.inputs[0] != unit.output)) return false;
    const bool rectifies = node.activation == kReluActivation;
    if (node.activation != kNoActivation && (!rectifies || activated)) return false;
    if (per_channel(context_, other, channels_of(before))) {
      if (!activated && unit.shift_in < 0) {
        unit.shift_in = other;
        unit.negate_shift_in = adds;
      } else if (activated && unit.shift_out < 0) {
        unit.shift_out = other;
        unit.negate_shift_out = !adds;
      } else {
        return false;
      }
    } else {
      const Tensor& residual = tensor_at(context_, other, "residual");
      if (!adds || unit.residual >= 0 || unit.shift_in >= 0 || activated) return false;
      if (!is_float(residual) || is_constant(residual) || !same_dims(residual, before)) return false;
      unit.residual = other;
    }
    unit.relu = unit.relu || rectifies;
    return take_behind(node);
  }

  Unit unit;

 private:
  bool take_front(const Operation& node, int input) {
    unit.input = input;
    unit.nodes.insert(unit.nodes.begin(), node.index);
    return true;
  }
  bool take_behind(const Operation& node) {
    unit.output = node.outputs[0];
    unit.nodes.push_back(node.index);
    return true;
  }

  const Context* context_;
};

struct Graph {
  std::vector<Operation> operations;  // in the order of the plan
  std::map<int, size_t> maker;        // tensor -> operation
  std::map<int, std::vector<size_t>> readers;
};

Graph read_graph(Context* context) {
  IntArray* plan = nullptr;
  if (context->get_execution_plan(context, &plan) != kOk || !plan) throw std::runtime_error("there is no graph");
  Graph graph;
  for (const int index : list_of(plan)) {
    graph.operations.push_back(operation_at(context, index));
    const Operation& operation = graph.operations.back();
    const size_t place = graph.operations.size() - 1;
    for (const int tensor : operation.outputs) graph.maker[tensor] = place;
    for (const int tensor : operation.inputs) graph.readers[tensor].push_back(place);
  }
  // Runtimes cut a graph with a circle into partitions without end.
  for (size_t place = 0; place < graph.operations.size(); ++place) {
    for (const int tensor : graph.operations[place].inputs) {
      const auto maker = graph.maker.find(tensor);
      if (tensor >= 0 && maker != graph.maker.end() && maker->second >= place) {
        throw std::runtime_error("node " + std::to_string(graph.operations[place].index) +
                                 " reads what is only made by it or behind it");
      }
    }
  }
  return graph;
}

// Whether the runtime would make exactly one partition of `nodes`, and nobody else wants what is computed in between.
bool stays_together(Context* context, const Unit& unit) {
  std::vector<int> sorted = unit.nodes;
  std::sort(sorted.begin(), sorted.end());
  std::vector<int> list = {static_cast<int>(sorted.size())};
  list.insert(list.end(), sorted.begin(), sorted.end());
  DelegateParams* parts = nullptr;
  int count = 0;
  const IntArray* nodes = reinterpret_cast<const IntArray*>(list.data());
  if (!context->preview || context->preview(context, nodes, &parts, &count) != kOk || count != 1 || !parts)
    return false;
  return parts->outputs && parts->outputs->size == 1 && parts->outputs->data[0] == unit.output;
}

// The convolution at `place` with as many neighbours as can be computed with it.
Unit widest_unit(Context* context, const Graph& graph, size_t place, const std::vector<bool>& taken) {
  UnitBuilder builder(context, graph.operations[place]);
  const auto try_with = [&](const Operation& node, bool in_front) {
    if (taken[static_cast<size_t>(&node - graph.operations.data())]) return false;
    const Unit before = builder.unit;
    const bool fits = in_front ? builder.put_in_front(node) : builder.put_behind(node);
    if (fits && stays_together(context, builder.unit)) return true;
    builder.unit = before;
    return false;
  };
  for (bool grown = true; grown;) {
    const auto readers = graph.readers.find(builder.unit.output);
    grown = readers != graph.readers.end() && readers->second.size() == 1 &&
            try_with(graph.operations[readers->second[0]], false);
  }
  for (bool grown = true; grown;) {
    const auto maker = graph.maker.find(builder.unit.input);
    grown = maker != graph.maker.end() && try_with(graph.operations[maker->second], true);
  }
  return builder.unit;
}

}  // namespace

bool Operation::ours() const {
  return builtin == kCustom && (name == kQuantize || name == kDequantize || name == kConv || name == kMaxPool);
}

Operation operation_at(Context* context, int index) {
  Node* node = nullptr;
  Registration* registration = nullptr;
  if (context->get_node(context, index, &node, &registration) != kOk || !node || !registration) {
    throw std::runtime_error("the graph lacks node " + std::to_string(index));
  }
  Operation operation;
  operation.index = index;
  operation.builtin = registration->builtin_code;
  operation.inputs = list_of(node->inputs);
  operation.outputs = list_of(node->outputs);
  if (operation.builtin == kCustom && registration->custom_name) {
    operation.name = registration->custom_name;
    operation.options = node->custom_data;
    operation.options_size = node->custom_size > 0 ? static_cast<size_t>(node->custom_size) : 0;
  }
  if (operation.builtin == kAdd || operation.builtin == kSub) {
    if (node->builtin_data) {
      std::memcpy(&operation.activation, node->builtin_data, sizeof operation.activation);  // its first member
    } else {
      operation.activation = -1;
    }
  }
  return operation;
}

Tensor& tensor_at(const Context* context, int index, const char* what) {
  if (index < 0 || static_cast<size_t>(index) >= context->tensors_size || !context->tensors) {
    throw std::invalid_argument(std::string(what) + " is missing");
  }
  Tensor& tensor = context->tensors[index];
  if (!tensor.dims || tensor.dims->size < 0 || tensor.dims->size > kMostAxes) {
    throw std::invalid_argument(std::string(what) + " has no dimensions, or too many");
  }
  for (int i = 0; i < tensor.dims->size; ++i) {
    if (tensor.dims->data[i] < 0) throw std::invalid_argument(std::string(what) + " has a negative dimension");
  }
  return tensor;
}

int64_t element_count(const Tensor& tensor) {
  if (!tensor.dims) return -1;
  int64_t count = 1;
  for (int i = 0; i < tensor.dims->size; ++i) {
    const int64_t size = tensor.dims->data[i];
    if (size < 0 || (size > 0 && count > (int64_t{1} << 40) / size)) return -1;
    count *= size;
  }
  return count;
}

size_t element_size(Type type) {
  return type == kFloat32 || type == kInt32 ? 4 : type == kInt8 || type == kBool ? 1 : 0;
}

const Tensor& constant_at(const Context* context, int index, Type type, const char* what) {
  const Tensor& tensor = tensor_at(context, index, what);
  if (tensor.type != type) {
    throw std::invalid_argument(std::string(what) + " has type " + std::to_string(tensor.type) + ", expected " +
                                std::to_string(type));
  }
  if (tensor.allocation_type != kReadOnly || !tensor.data.raw) {
    throw std::invalid_argument(std::string(what) + " is no constant");
  }
  const int64_t count = element_count(tensor);
  if (count < 0 || tensor.bytes != static_cast<size_t>(count) * element_size(type)) {
    throw std::invalid_argument(std::string(what) + " holds " + std::to_string(tensor.bytes) +
                                " bytes, which its dimensions do not");
  }
  return tensor;
}

Unit unit_of(const Context* context, const std::vector<Operation>& operations) {
  const auto conv = std::find_if(operations.begin(), operations.end(),
                                 [](const Operation& operation) { return operation.name == kConv; });
  if (conv == operations.end()) throw std::invalid_argument("there is no LceBconv2d");
  UnitBuilder builder(context, *conv);
  for (auto node = conv; node != operations.begin();) {
    --node;
    if (node->outputs == std::vector<int>{builder.unit.input}) builder.put_in_front(*node);
  }
  for (auto node = conv + 1; node != operations.end(); ++node) builder.put_behind(*node);
  if (builder.unit.nodes.size() != operations.size()) throw std::invalid_argument("the claimed nodes are no unit");
  return builder.unit;
}

std::vector<std::vector<int>> partitions(Context* context, bool fuse) {
  const Graph graph = read_graph(context);
  std::vector<bool> taken(graph.operations.size());
  std::vector<std::vector<int>> found;
  const auto place_of = [&](int index) {
    return static_cast<size_t>(std::find_if(graph.operations.begin(), graph.operations.end(),
                                            [&](const Operation& o) { return o.index == index; }) -
                               graph.operations.begin());
  };
  for (size_t place = 0; fuse && place < graph.operations.size(); ++place) {
    if (!graph.operations[place].ours() || graph.operations[place].name != kConv) continue;
    Unit unit;
    try {
      unit = widest_unit(context, graph, place, taken);
    } catch (const std::invalid_argument&) {
      continue;  // it is claimed alone, and says what is wrong when it is prepared
    }
    for (const int index : unit.nodes) taken[place_of(index)] = true;
    std::sort(unit.nodes.begin(), unit.nodes.end());
    found.push_back(unit.nodes);
  }
  for (size_t place = 0; place < graph.operations.size(); ++place) {
    if (graph.operations[place].ours() && !taken[place]) found.push_back({graph.operations[place].index});
  }
  return found;
}

}  // namespace bnas::litert
