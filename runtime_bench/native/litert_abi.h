// The C structures of TensorFlow Lite and LiteRT that an external delegate meets, as far as we read them (64 bits).
// They are the same from TensorFlow 2.14 to LiteRT 2.3; no package ships their header. What would show that they have
// changed is checked before anything is claimed, see litert_delegate.cpp.
#pragma once

#include <cstddef>
#include <cstdint>

namespace bnas::litert {

enum Status : int { kOk = 0, kError = 1 };

enum Type : int { kFloat32 = 1, kInt32 = 2, kBool = 6, kInt8 = 9 };

enum AllocationType : int { kReadOnly = 1, kComputedReadOnly = 5 };  // a constant of the file, or made of some

struct IntArray {
  int size;
  int data[1];  // `size` of them
};

struct Tensor {
  Type type;
  union {
    void* raw;
    const float* f32;
    const int32_t* i32;
  } data;
  IntArray* dims;
  struct {
    float scale;
    int32_t zero_point;
  } params;
  AllocationType allocation_type;
  size_t bytes;
  const void* allocation;
  const char* name;
  void* delegate;
  int buffer_handle;
  bool data_is_stale, is_variable;
  struct {
    int type;
    void* params;
  } quantization;
  void* sparsity;
  const IntArray* dims_signature;
};

struct Node {
  IntArray *inputs, *outputs, *intermediates, *temporaries;
  void* user_data;
  void* builtin_data;
  const void* custom_data;
  int custom_size;
  void* delegate;
  bool might_have_side_effect;
};

struct Context;

struct Registration {
  void* (*init)(Context* context, const char* buffer, size_t length);
  void (*free)(Context* context, void* data);
  Status (*prepare)(Context* context, Node* node);
  Status (*invoke)(Context* context, Node* node);
  const char* (*profiling_string)(const Context* context, const Node* node);
  int builtin_code;
  const char* custom_name;
  int version;
  void* external;
  void* async_kernel;
  uint64_t inplace_operator;
  uint64_t room[8];  // it is passed by value: what later versions append reads as zero
};

struct Delegate;

struct DelegateParams {
  Delegate* delegate;
  IntArray *nodes, *inputs, *outputs;
};

struct Context {
  size_t tensors_size;
  Status (*get_execution_plan)(Context* context, IntArray** plan);
  Tensor* tensors;
  void* impl;
  Status (*resize_tensor)(Context* context, Tensor* tensor, IntArray* dims);  // takes dims, made by malloc
  void (*report_error)(Context* context, const char* format, ...);
  Status (*add_tensors)(Context* context, int count, int* first);
  Status (*get_node)(Context* context, int index, Node** node, Registration** registration);
  Status (*replace_nodes)(Context* context, Registration registration, const IntArray* nodes, Delegate* delegate);
  int recommended_threads;
  void* get_external_context;
  void* set_external_context;
  bool relax_to_fp16;
  void* profiler;
  void* allocate_persistent;
  void* allocate_for_eval;
  void* request_scratch;
  void* get_scratch;
  void* resize_explicit;
  // How `nodes` would be cut if they were replaced; the result is the context's.
  Status (*preview)(Context* context, const IntArray* nodes, DelegateParams** parts, int* count);
};

struct Delegate {
  void* data;
  Status (*prepare)(Context* context, Delegate* delegate);
  void* buffers[3];
  int64_t flags;
  void* builder;
};

inline constexpr int64_t kAllowDynamicTensors = 1;  // without it all operators are prepared before we are asked

// Operators by the numbers of the file format.
enum Builtin : int { kAdd = 0, kRelu = 19, kCustom = 32, kSub = 41, kPrelu = 54 };

enum Activation : int { kNoActivation = 0, kReluActivation = 1, kRelu1Activation = 2, kRelu6Activation = 3 };

static_assert(sizeof(void*) == 8 && sizeof(Tensor) == 112 && offsetof(Tensor, dims) == 16 &&
              offsetof(Tensor, allocation_type) == 32 && offsetof(Tensor, quantization) == 80);
static_assert(sizeof(Node) == 80 && offsetof(Node, custom_data) == 48);
static_assert(sizeof(Registration) == 88 + 64 && offsetof(Registration, builtin_code) == 40);
static_assert(offsetof(Context, recommended_threads) == 72 && offsetof(Context, preview) == 152);
static_assert(sizeof(Delegate) == 56 && offsetof(Delegate, flags) == 40);

}  // namespace bnas::litert
