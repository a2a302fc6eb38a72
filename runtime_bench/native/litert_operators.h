// What runs in place of the nodes of one partition.
#pragma once

#include <memory>

#include "conv.h"
#include "litert_graph.h"

namespace bnas::litert {

class Operator {
 public:
  virtual ~Operator() = default;

  // Checks the nodes against the tensors and sizes the output; called again whenever sizes change. Both throw an
  // exception that says what does not fit.
  virtual void prepare(Context* context) = 0;
  virtual void invoke(Context* context, const Host& host) = 0;
};

// Throws std::invalid_argument if the nodes are none of ours.
std::unique_ptr<Operator> make_operator(const Context* context, const std::vector<Operation>& operations,
                                        const Path& path);

}  // namespace bnas::litert
