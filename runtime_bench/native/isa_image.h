// What one instruction set provides for the convolution of an image; see image_conv.h. Output channels lie in the
// lanes.
#pragma once

#include <cstdint>

namespace bnas {

// Some output channels of a row of tiles, of 4 x 4 outputs each.
struct ImageJob {
  int taps_h, taps_w;        // of toom_cook
  const float* const* rows;  // [points_h, runs_h]: transformed both ways, [points_w, depth, step] each
  int64_t runs_h, depth;     // depth: channels times the runs of taps that a kernel row is taken in
  int64_t step, point_step;  // floats from one value of depth, or point, to the next
  const float* weights;      // [points_w, points_h, runs_h, depth, channels of the job]
  const float *bias, *slope, *shift;
  bool rectify;
};

struct ImageIsa {
  int lanes;      // floats of a register
  int registers;  // of output channels that are multiplied together; what is left over, one by one
  int tiles;      // the most that are multiplied together

  // parts[i * length + t] = row[t * count + i], i < count; both of count * length floats, length a multiple of lanes.
  // row is overwritten.
  void (*split)(float* row, int64_t count, int64_t length, float* parts);

  // out[p * point_step + t], t < tiles (a multiple of lanes), from what inputs[i][t] are; inputs: [points].
  void (*transform)(int taps, const float* const* inputs, int64_t tiles, float* out, int64_t point_step);

  // out[i * row + (4 t + j) * channels + lane], i, j < 4, for `tiles` tiles t from `first` on and as many registers of
  // channels as said.
  void (*unit)(const ImageJob& job, int registers, int tiles, int64_t first, float* out, int64_t row, int64_t channels);

  // out[pixel * channels ...] = the largest of row at the places [pixel * stride - pad, ... + kernel) that are inside
  // of width. channels: a multiple of lanes.
  void (*pool)(const float* row, int64_t width, int64_t channels, int64_t kernel, int64_t stride, int64_t pad,
               int64_t pixels, float* out);

  // y[o * plane + pixel] = the largest of rows[i][pixel * step + o], i < count, for o < channels.
  void (*emit)(const float* const* rows, int64_t count, int64_t step, int64_t pixels, int64_t channels, float* y,
               int64_t plane);
};

}  // namespace bnas
