// A float convolution of an image with what follows it, an activation and a max-pool, over whatever instruction set was
// chosen. Made for images of few channels. Knows no framework.
//
//     v = prelu(sum(x * w) + bias; slope) + shift_out        pads of x are 0
//     y = the largest v of each window of the pool            pads of the pool are no values
//
// 4 x 4 neighbouring sums are made of fewer products than they have (toom_cook.h), so rounding differs from that of a
// plain sum, also where a window has nothing but zeros beside others that do not, and a value that is not finite, or a
// sum near the largest float, spoils its neighbours.
#pragma once

#include <cstdint>
#include <vector>

#include "conv.h"
#include "dispatch.h"
#include "shape.h"

namespace bnas {

// The pool of a convolution; as in PoolShape. All ones without pads: none.
struct ImagePool {
  int64_t kernel_h = 1, kernel_w = 1;
  int64_t stride_h = 1, stride_w = 1;
  int64_t pad_top = 0, pad_left = 0, pad_bottom = 0, pad_right = 0;

  // Over what `conv`, which must be valid, gives.
  PoolShape over(const ConvShape& conv) const;
};

// Why this cannot be computed, or an empty text. Only one group and no dilation.
std::string check(const ConvShape& conv, const ImagePool& pool);

struct ImageAffine {
  PerChannel bias, slope, shift_out;  // of out_channels
};

// Weights of one convolution, arranged for one path; immutable, so any number of threads may run it at once.
class ImageConv {
 public:
  // weights: [out_channels, channels, kernel_h, kernel_w]. Batch, height and width may be anything.
  ImageConv(const ConvShape& shape, const float* weights, const Path& path);

  // check(shape, pool) must be empty, and all of shape but batch, height and width as in the constructor.
  // x: [batch, channels, height, width]; y: [batch, out_channels, ...] as from pool. Throws std::bad_alloc.
  void run(const ConvShape& shape, const ImagePool& pool, const float* x, const ImageAffine& affine, float* y,
           const Host& host) const;

 private:
  Path path_;
  std::vector<float> weights_;  // [blocks, points_w, points_h, runs_h, depth, channels of a block]; or as given
};

}  // namespace bnas
