// The fused binary unit and its bit-packed form, over whatever instruction set was chosen. Knows no framework.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "dispatch.h"
#include "shape.h"

namespace bnas {

// How a host runs tasks: run(host, tasks, task, job) calls task(job, i) once for each i < tasks, on any threads, and
// returns when all are done.
struct Host {
  void* host = nullptr;
  void (*run)(void* host, size_t tasks, void (*task)(void* job, size_t index), void* job) = nullptr;  // null: a loop
};

// A tensor of `count` values: count 1 stands for all channels, else one value a channel.
struct PerChannel {
  const float* values;
  int64_t count;
};

// What y = act(dot * scale + bias + residual) needs besides the dot products. Neutral values (scale 1, bias 0, slope 1,
// shifts 0) of count 1 cost nothing.
struct Affine {
  PerChannel scale, bias, slope, shift_in, shift_out;  // of out_channels
  const float* residual;                               // [batch, out_channels, out_height, out_width], or null
  float residual_value;                                // added where residual is null
  const std::vector<Finish>* finishes = nullptr;       // of all this but the residual, so that a run need not make them
};

// What `affine` does to each output channel.
std::vector<Finish> make_finishes(const ConvShape& shape, const Affine& affine);

struct Plan;

// Weights of one convolution, arranged for one path; immutable, so any number of threads may run it at once.
class BinaryConv {
 public:
  // w_packed: uint8 [out_channels, kernel_h, kernel_w, ceil(group_channels / 8)], least significant bit first, 1 means
  // -1; bits past the last channel are ignored. `shape`'s batch, height and width may be anything.
  BinaryConv(const ConvShape& shape, const uint8_t* w_packed, const Path& path);
  ~BinaryConv();

  // check(shape) must be empty, and all but batch, height and width as in the constructor.
  // Throws std::bad_alloc or std::length_error if there is no room for the packed image.

  // float -> float. x: [batch, channels, height, width], bit = (x < shift); y: [batch, out_channels, oh, ow]. y may be
  // affine.residual, or x itself where they have the same shape, or both.
  void run(const ConvShape& shape, const float* x, PerChannel shift, const Affine& affine, float* y,
           const Host& host) const;

  // bits -> float: the same with x a bits tensor.
  void run_from_bits(const ConvShape& shape, const uint32_t* x, const Affine& affine, float* y, const Host& host) const;

  // bits -> bits. x, y: bits tensors; output bit = (dot < threshold[o]), thresholds: int32 [out_channels].
  void run_bits(const ConvShape& shape, const uint32_t* x, const int32_t* thresholds, uint32_t* y,
                const Host& host) const;

  const Path& path() const { return path_; }

 private:
  template <typename Fill>
  void run_to_float(const ConvShape& shape, const void* x, const Fill& fill, const Affine& affine, float* y,
                    const Host& host) const;
  std::shared_ptr<const Plan> plan_for(const ConvShape& shape) const;  // the last one is kept

  Path path_;
  std::vector<uint8_t> packed_;    // as given; the reference reads it
  std::vector<uint32_t> weights_;  // [groups, blocks, steps, block] for the Isa
  mutable std::mutex mutex_;
  mutable std::shared_ptr<const Plan> plan_;
};

// x [batch, channels, height * width] float -> bits tensor, bit = (x < shift).
void pack_signs(const Path& path, int64_t batch, int64_t channels, int64_t pixels, const float* x, PerChannel shift,
                uint32_t* bits, const Host& host);

// Maximum over windows of signs: -1 only where all are -1. Padding never wins.
void max_pool_bits(const PoolShape& shape, const uint32_t* x, uint32_t* y, const Host& host);

}  // namespace bnas
