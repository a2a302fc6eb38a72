// The part of onnxruntime's C interface that is used here, declared by ourselves: its header comes with no package.
//
// The interface is one table of functions to which every version only appends, so a function is its place in the table
// and its signature. Version 17 is asked for, which onnxruntime 1.17 and all later ones have. Structures whose fields
// nobody looks into are left incomplete.
#pragma once

#include <cstddef>
#include <cstdint>

namespace bnas::ort {

inline constexpr uint32_t kApiVersion = 17;

struct Api {
  void (*entries[276])();
};

struct ApiBase {
  const Api* (*get_api)(uint32_t version);  // null if this onnxruntime is older than `version`
  const char* (*version)();
};

struct Allocator;
struct CustomOpDomain;
struct Env;
struct KernelContext;
struct KernelInfo;
struct MemoryInfo;
struct OpAttribute;
struct RunOptions;
struct Session;
struct SessionOptions;
struct ShapeContext;
struct Status;  // null means success
struct TypeInfo;
struct TensorInfo;  // element type and dimensions
struct Value;

enum ErrorCode : int { kFail = 1, kInvalidArgument = 2 };
enum ElementType : int {
  kFloat = 1,
  kUint8 = 2,
  kInt8 = 3,
  kUint16 = 4,
  kInt16 = 5,
  kInt32 = 6,
  kInt64 = 7,
  kBool = 9,
  kFloat16 = 10,
  kDouble = 11,
  kUint32 = 12,
  kUint64 = 13
};
enum AttributeType : int { kAttributeInt = 1, kAttributeInts = 2 };
enum ValueKind : int { kTensor = 1 };
enum LogLevel : int { kLogFatal = 4 };
enum OptimizationLevel : int { kNoOptimization = 0 };
enum AllocatorKind : int { kDeviceAllocator = 0 };
enum MemoryKind : int { kDefaultMemory = 0 };

// An operator as version 18 lays it out; onnxruntime reads what belongs to the `version` that it finds. It must live as
// long as any session that knows it.
struct CustomOp {
  uint32_t version;
  void* (*create_kernel)(const CustomOp*, const Api*, const KernelInfo*);  // unused: the second form reports errors
  const char* (*name)(const CustomOp*);
  const char* (*provider)(const CustomOp*);  // null: the CPU
  ElementType (*input_type)(const CustomOp*, size_t index);
  size_t (*input_count)(const CustomOp*);
  ElementType (*output_type)(const CustomOp*, size_t index);
  size_t (*output_count)(const CustomOp*);
  void (*compute)(void* kernel, KernelContext*);  // unused, like create_kernel
  void (*destroy_kernel)(void* kernel);
  int (*input_presence)(const CustomOp*, size_t index);  // 0: required
  int (*output_presence)(const CustomOp*, size_t index);
  int (*input_memory)(const CustomOp*, size_t index);
  int (*variadic_input_least)(const CustomOp*);
  int (*variadic_input_uniform)(const CustomOp*);
  int (*variadic_output_least)(const CustomOp*);
  int (*variadic_output_uniform)(const CustomOp*);
  Status* (*create_kernel_v2)(const CustomOp*, const Api*, const KernelInfo*, void** kernel);
  Status* (*compute_v2)(void* kernel, KernelContext*);
  Status* (*infer_shape)(const CustomOp*, ShapeContext*);
  int (*first_opset)(const CustomOp*);
  int (*last_opset)(const CustomOp*);
  // From version 18 on: pairs of an input and an output that may take its place, if nobody else reads that input.
  size_t (*may_inplace)(int** inputs, int** outputs);
  void (*release_may_inplace)(int* inputs, int* outputs);
  size_t (*alias_map)(int** inputs, int** outputs);
  void (*release_alias_map)(int* inputs, int* outputs);
};

// One function of the table: `CreateStatus(api, code, text)` calls it.
template <typename Signature>
struct Entry;

template <typename Result, typename... Arguments>
struct Entry<Result(Arguments...)> {
  int slot;

  Result operator()(const Api& api, Arguments... arguments) const {
    return reinterpret_cast<Result (*)(Arguments...)>(api.entries[slot])(arguments...);
  }
};

// Statuses. The texts belong to the status.
inline constexpr Entry<Status*(int code, const char* text)> CreateStatus{0};
inline constexpr Entry<const char*(const Status*)> GetErrorMessage{2};
inline constexpr Entry<void(Status*)> ReleaseStatus{93};

// Values and their types. A name that a function allocates is freed with AllocatorFree; the tensor information of a
// type belongs to the type.
inline constexpr Entry<Status*(const MemoryInfo*, void* data, size_t bytes, const int64_t* dims, size_t rank,
                               int element_type, Value**)>
    CreateTensorWithDataAsOrtValue{49};
inline constexpr Entry<Status*(Value*, void** data)> GetTensorMutableData{51};
inline constexpr Entry<Status*(const TypeInfo*, const TensorInfo**)> CastTypeInfoToTensorInfo{55};
inline constexpr Entry<Status*(const TypeInfo*, int* kind)> GetOnnxTypeFromTypeInfo{56};
inline constexpr Entry<Status*(TensorInfo**)> CreateTensorTypeAndShapeInfo{57};
inline constexpr Entry<Status*(TensorInfo*, int element_type)> SetTensorElementType{58};
inline constexpr Entry<Status*(TensorInfo*, const int64_t* dims, size_t rank)> SetDimensions{59};
inline constexpr Entry<Status*(const TensorInfo*, int* element_type)> GetTensorElementType{60};
inline constexpr Entry<Status*(const TensorInfo*, size_t* rank)> GetDimensionsCount{61};
inline constexpr Entry<Status*(const TensorInfo*, int64_t* dims, size_t rank)> GetDimensions{62};
inline constexpr Entry<Status*(const TensorInfo*, const char** names, size_t rank)> GetSymbolicDimensions{63};
inline constexpr Entry<Status*(const Value*, TensorInfo**)> GetTensorTypeAndShape{65};
inline constexpr Entry<Status*(const Value*, int* kind)> GetValueType{67};
inline constexpr Entry<Status*(int allocator_kind, int memory_kind, MemoryInfo**)> CreateCpuMemoryInfo{69};
inline constexpr Entry<Status*(Allocator*, void*)> AllocatorFree{76};
inline constexpr Entry<Status*(Allocator**)> GetAllocatorWithDefaultOptions{78};
inline constexpr Entry<void(MemoryInfo*)> ReleaseMemoryInfo{94};
inline constexpr Entry<void(Value*)> ReleaseValue{96};
inline constexpr Entry<void(TypeInfo*)> ReleaseTypeInfo{98};
inline constexpr Entry<void(TensorInfo*)> ReleaseTensorInfo{99};
inline constexpr Entry<Status*(TensorInfo*, const char** names, size_t rank)> SetSymbolicDimensions{271};

// Operators. What a kernel's information and context hand out belongs to them.
inline constexpr Entry<Status*(const char* domain, CustomOpDomain**)> CreateCustomOpDomain{26};
inline constexpr Entry<Status*(CustomOpDomain*, const CustomOp*)> CustomOpDomain_Add{27};
inline constexpr Entry<Status*(SessionOptions*, CustomOpDomain*)> AddCustomOpDomain{28};
inline constexpr Entry<Status*(const KernelInfo*, const char* name, int64_t*)> KernelInfoGetAttribute_int64{86};
inline constexpr Entry<Status*(KernelContext*, size_t index, const Value**)> KernelContext_GetInput{90};
inline constexpr Entry<Status*(KernelContext*, size_t index, const int64_t* dims, size_t rank, Value**)>
    KernelContext_GetOutput{91};
inline constexpr Entry<void(CustomOpDomain*)> ReleaseCustomOpDomain{101};
inline constexpr Entry<Status*(const KernelInfo*, const char* name, int64_t*, size_t* count)>
    KernelInfoGetAttributeArray_int64{163};
inline constexpr Entry<Status*(const KernelInfo*, size_t* count)> KernelInfo_GetInputCount{230};
inline constexpr Entry<Status*(const KernelInfo*, char* text, size_t* size)> KernelInfo_GetNodeName{244};
inline constexpr Entry<Status*(const KernelInfo*, size_t index, int* is_constant, const Value**)>
    KernelInfoGetConstantInput_tensor{249};
inline constexpr Entry<Status*(const ShapeContext*, size_t* count)> ShapeInferContext_GetInputCount{267};
inline constexpr Entry<Status*(const ShapeContext*, size_t index, TensorInfo**)> ShapeInferContext_GetInputTypeShape{
    268};
inline constexpr Entry<Status*(const ShapeContext*, const char* name, const OpAttribute**)>
    ShapeInferContext_GetAttribute{269};
inline constexpr Entry<Status*(const ShapeContext*, size_t index, const TensorInfo*)>
    ShapeInferContext_SetOutputTypeShape{270};
inline constexpr Entry<Status*(const OpAttribute*, int attribute_type, void*, size_t bytes, size_t* used)> ReadOpAttr{
    272};
inline constexpr Entry<Status*(const KernelContext*, void (*task)(void* job, size_t index), size_t tasks,
                               size_t batches, void* job)>
    KernelContext_ParallelFor{274};

// Sessions.
inline constexpr Entry<Status*(int log_level, const char* log_id, Env**)> CreateEnv{3};
inline constexpr Entry<Status*(const Env*, const char* path, const SessionOptions*, Session**)> CreateSession{7};
inline constexpr Entry<Status*(Session*, const RunOptions*, const char* const* input_names, const Value* const* inputs,
                               size_t input_count, const char* const* output_names, size_t output_count,
                               Value** outputs)>
    Run{9};
inline constexpr Entry<Status*(SessionOptions**)> CreateSessionOptions{10};
inline constexpr Entry<Status*(SessionOptions*, const char* prefix)> EnableProfiling{14};
inline constexpr Entry<Status*(SessionOptions*, int level)> SetSessionGraphOptimizationLevel{23};
inline constexpr Entry<Status*(SessionOptions*, int threads)> SetIntraOpNumThreads{24};
inline constexpr Entry<Status*(SessionOptions*, int threads)> SetInterOpNumThreads{25};
inline constexpr Entry<Status*(const Session*, size_t*)> SessionGetInputCount{30};
inline constexpr Entry<Status*(const Session*, size_t*)> SessionGetOutputCount{31};
inline constexpr Entry<Status*(const Session*, size_t index, TypeInfo**)> SessionGetInputTypeInfo{33};
inline constexpr Entry<Status*(const Session*, size_t index, TypeInfo**)> SessionGetOutputTypeInfo{34};
inline constexpr Entry<Status*(const Session*, size_t index, Allocator*, char**)> SessionGetInputName{36};
inline constexpr Entry<Status*(const Session*, size_t index, Allocator*, char**)> SessionGetOutputName{37};
inline constexpr Entry<void(Env*)> ReleaseEnv{92};
inline constexpr Entry<void(Session*)> ReleaseSession{95};
inline constexpr Entry<void(SessionOptions*)> ReleaseSessionOptions{100};
inline constexpr Entry<Status*(Session*, Allocator*, char** path)> SessionEndProfiling{110};
inline constexpr Entry<Status*(SessionOptions*, const char* key, const char* value)> AddSessionConfigEntry{130};
inline constexpr Entry<Status*(SessionOptions*, const char* path)> RegisterCustomOpsLibrary_V2{228};

}  // namespace bnas::ort
