// The specification: one loop nest per operator, float arithmetic in the order of the definition. Slow on purpose.
#pragma once

#include "byte_conv.h"
#include "conv.h"
#include "image_conv.h"

namespace bnas::reference {

void conv(const ConvShape& shape, const uint8_t* w_packed, const float* x, PerChannel shift, const Affine& affine,
          float* y);
void conv_from_bits(const ConvShape& shape, const uint8_t* w_packed, const uint32_t* x, const Affine& affine, float* y);
void conv_bits(const ConvShape& shape, const uint8_t* w_packed, const uint32_t* x, const int32_t* thresholds,
               uint32_t* y);
void pack_signs(int64_t batch, int64_t channels, int64_t pixels, const float* x, PerChannel shift, uint32_t* bits);
void byte_conv(const ConvShape& shape, const int8_t* weights, const float* x, const Levels& levels,
               const ByteAffine& affine, float* y);
void image_conv(const ConvShape& shape, const PoolShape& pool, const float* weights, const float* x,
                const ImageAffine& affine, float* y);

}  // namespace bnas::reference
