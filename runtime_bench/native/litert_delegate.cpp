// Larq's operators for stock LiteRT and TensorFlow Lite: what load_delegate("libbnas_litert.so") loads.
//
// Each of our operators, with the neighbours that are computed with it, becomes a partition of its own: tensors between
// partitions stay in the runtime's arena, and everything else stays with the runtime and XNNPACK. Whatever does not
// fit is told through the runtime's error reporter; nothing is thrown across the border.
#include <cstring>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "dispatch.h"
#include "litert_graph.h"
#include "litert_operators.h"
#include "litert_threads.h"

namespace bnas::litert {
namespace {

struct OurDelegate {
  Delegate delegate{};
  Path path{};
  bool fuse = true;
  Threads threads;
};

// What runs one partition. An error while it is made is kept, and told when it is prepared: making cannot fail.
struct Partition {
  OurDelegate* ours = nullptr;
  std::string where;  // operator and node, for messages
  std::string error;
  std::unique_ptr<Operator> runs;
};

template <typename Work>
Status guarded(Context* context, const std::string& where, const Work& work) {
  try {
    work();
    return kOk;
  } catch (const std::bad_alloc&) {
    context->report_error(context, "%s: there is not enough memory", where.c_str());
  } catch (const std::exception& error) {
    context->report_error(context, "%s: %s", where.c_str(), error.what());
  }
  return kError;
}

void* make_partition(Context* context, const char* buffer, size_t) {
  auto partition = std::make_unique<Partition>();
  try {
    const auto* params = reinterpret_cast<const DelegateParams*>(buffer);
    partition->ours = static_cast<OurDelegate*>(params->delegate->data);
    std::vector<Operation> operations;
    for (int i = 0; i < params->nodes->size; ++i) {
      operations.push_back(operation_at(context, params->nodes->data[i]));
      const Operation& operation = operations.back();
      if (operation.ours()) partition->where = operation.name + " (node " + std::to_string(operation.index) + ")";
    }
    partition->runs = make_operator(context, operations, partition->ours->path);
  } catch (const std::exception& error) {
    partition->error = error.what();
  }
  return partition.release();
}

void free_partition(Context*, void* data) { delete static_cast<Partition*>(data); }

Status prepare_partition(Context* context, Node* node) {
  Partition& partition = *static_cast<Partition*>(node->user_data);
  return guarded(context, partition.where, [&] {
    if (!partition.runs) throw std::invalid_argument(partition.error);
    partition.runs->prepare(context);
  });
}

Status invoke_partition(Context* context, Node* node) {
  Partition& partition = *static_cast<Partition*>(node->user_data);
  return guarded(context, partition.where,
                 [&] { partition.runs->invoke(context, partition.ours->threads.host(context->recommended_threads)); });
}

// That the structures lie where we think: every constant that our operators read is as large as its dimensions say.
// Only types that they do not take have no size here.
void check_layout(Context* context) {
  IntArray* plan = nullptr;
  if (context->tensors_size > (size_t{1} << 24) || context->get_execution_plan(context, &plan) != kOk || !plan ||
      plan->size < 0 || plan->size > (1 << 24)) {
    throw std::runtime_error("this version of the runtime is not known");
  }
  const std::vector<int> nodes(plan->data, plan->data + plan->size);
  for (const int index : nodes) {
    const Operation operation = operation_at(context, index);
    if (!operation.ours()) continue;
    for (const int input : operation.inputs) {
      if (input == -1) continue;
      const Tensor& tensor = tensor_at(context, input, "an input");
      if (tensor.allocation_type == kReadOnly && element_size(tensor.type)) {
        constant_at(context, input, tensor.type, "a constant");
      }
    }
  }
}

Status prepare_delegate(Context* context, Delegate* delegate) {
  return guarded(context, "bnas", [&] {
    const OurDelegate& ours = *static_cast<const OurDelegate*>(delegate->data);
    check_layout(context);
    Registration registration{};
    registration.init = make_partition;
    registration.free = free_partition;
    registration.prepare = prepare_partition;
    registration.invoke = invoke_partition;
    registration.builtin_code = 51;  // that of a delegate's node
    registration.custom_name = "bnas";
    registration.version = 1;
    for (std::vector<int> nodes : partitions(context, ours.fuse)) {
      nodes.insert(nodes.begin(), static_cast<int>(nodes.size()));
      const IntArray* list = reinterpret_cast<const IntArray*>(nodes.data());
      if (context->replace_nodes(context, registration, list, delegate) != kOk) {
        throw std::runtime_error("the runtime does not let its nodes be replaced");
      }
    }
  });
}

std::unique_ptr<OurDelegate> make_delegate(const char* const* keys, const char* const* values, size_t count) {
  auto ours = std::make_unique<OurDelegate>();
  ours->path = selected_path();
  for (size_t i = 0; i < count; ++i) {
    const std::string key = keys[i], value = values[i];
    const bool on = value == "1" || value == "True", off = value == "0" || value == "False";  // as Python writes bools
    if (key != "fuse" || (!on && !off)) {
      throw std::invalid_argument("option " + key + "=" + value + " is not known; there is fuse=0 and fuse=1");
    }
    ours->fuse = on;
  }
  ours->delegate.data = ours.get();
  ours->delegate.prepare = prepare_delegate;
  ours->delegate.flags = kAllowDynamicTensors;
  return ours;
}

}  // namespace
}  // namespace bnas::litert

#define BNAS_EXPORT extern "C" __attribute__((visibility("default")))

// The count comes as a C int from Python: only its lower half is meant.
BNAS_EXPORT bnas::litert::Delegate* tflite_plugin_create_delegate(const char* const* keys, const char* const* values,
                                                                  size_t count, void (*error)(const char*)) {
  try {
    return &bnas::litert::make_delegate(keys, values, count & 0xffffffffu).release()->delegate;
  } catch (const std::exception& caught) {
    if (error) error(caught.what());
    return nullptr;
  }
}

BNAS_EXPORT void tflite_plugin_destroy_delegate(bnas::litert::Delegate* delegate) {
  if (delegate) delete static_cast<bnas::litert::OurDelegate*>(delegate->data);
}

// The path that a delegate made now would use, such as "avx512"; empty if BNAS_ISA names none.
BNAS_EXPORT const char* bnas_isa() {
  try {
    return bnas::selected_path().name;
  } catch (...) {
    return "";
  }
}

BNAS_EXPORT const char* bnas_native_version() { return BNAS_VERSION; }
