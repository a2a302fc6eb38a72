// Minimal filtering: 4 neighbouring sums of `taps` products each from taps + 3 products (Toom 1963, Cook 1966; for
// convolutions Winograd 1980, Lavin and Gray 2016). With d of taps + 3 inputs and g of taps weights:
//
//     sum_i d[j + i] g[i] = sum_p output[j][p] (sum_i input[p][i] d[i]) (sum_i weights[p][i] g[i])       j < 4
//
// Inputs and weights are polynomials, multiplied at points of which the last one is infinity; what is written here is
// the transpose of that. Of the points that have few binary digits, these lose least to rounding in float32: see
// kernels.md.
#pragma once

namespace bnas {
namespace {  // whatever an instruction set compiles stays with it

constexpr int kTileOutputs = 4, kMostTaps = 4, kMostPoints = 7;

struct ToomCook {
  int points, pairs;  // points 1 + 2 q and 2 + 2 q, q < pairs, differ in their sign
  double input[kMostPoints][kMostPoints], weights[kMostPoints][kMostTaps], output[kTileOutputs][kMostPoints];
};

// 1 <= taps <= kMostTaps. A single tap is multiplied as it is.
constexpr ToomCook toom_cook(int taps) {
  constexpr double few[] = {0, 0.75, -0.75, 1.5, -1.5}, more[] = {0, 1, -1, 2, -2, 0.5};
  const double* at = taps < kMostTaps ? few : more;
  ToomCook m{};
  m.points = taps + kTileOutputs - 1;
  if (taps == 1) {
    for (int p = 0; p < m.points; ++p) m.input[p][p] = m.weights[p][0] = m.output[p][p] = 1;
    return m;
  }
  const int finite = m.points - 1;
  m.pairs = (finite - 1) / 2;
  for (int p = 0; p <= finite; ++p) {  // input: the polynomial that is zero at all other finite points
    int degree = 0;
    double scale = 1;
    m.input[p][0] = 1;
    for (int q = 0; q < finite; ++q) {
      if (q == p) continue;
      ++degree;
      for (int i = degree; i >= 0; --i) m.input[p][i] = (i ? m.input[p][i - 1] : 0) - at[q] * m.input[p][i];
      if (p < finite) scale *= at[p] - at[q];
    }
    if (p == finite) break;
    double power = 1;
    for (int i = 0; i < kMostTaps; ++i, power *= at[p]) {
      if (i < taps) m.weights[p][i] = power / scale;
      m.output[i][p] = power;  // as many outputs as taps at most
    }
  }
  m.weights[finite][taps - 1] = m.output[kTileOutputs - 1][finite] = 1;
  return m;
}

}  // namespace
}  // namespace bnas
