// Which operators of a domain a .onnx file holds, and its metadata, without any library: a walk over protobuf's wire
// format. What a network weighs is stepped over, so of a mapped file few pages are read.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <stdexcept>
#include <string>

namespace bnas::onnx {

// A length-delimited stretch of a file. All reads are checked; std::invalid_argument for what is not protobuf.
struct Message {
  const uint8_t* at = nullptr;
  const uint8_t* end = nullptr;

  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      if (at == end) throw std::invalid_argument("it ends too early");
      const uint8_t byte = *at++;
      value |= static_cast<uint64_t>(byte & 127) << shift;
      if (byte < 128) return value;
    }
    throw std::invalid_argument("it has a number of more than 64 bits");
  }

  void skip(uint64_t bytes) {
    if (bytes > static_cast<uint64_t>(end - at)) throw std::invalid_argument("it ends too early");
    at += bytes;
  }

  // The next field. False at the end; `content` is set if it has a length.
  bool next(uint64_t* field, bool* has_content, Message* content) {
    if (at == end) return false;
    const uint64_t tag = varint();
    *field = tag >> 3;
    *has_content = (tag & 7) == 2;
    switch (tag & 7) {
      case 0:
        varint();
        return true;
      case 1:
        skip(8);
        return true;
      case 2: {
        const uint64_t size = varint();
        content->at = at;
        skip(size);
        content->end = at;
        return true;
      }
      case 5:
        skip(4);
        return true;
      default:
        throw std::invalid_argument("it has a field of unknown kind");
    }
  }
};

enum Field : uint64_t {  // of ONNX's messages, as far as nodes and metadata can be reached
  kModelGraph = 7,
  kModelMetadata = 14,
  kEntryKey = 1,
  kEntryValue = 2,
  kGraphNode = 1,
  kNodeOperator = 4,
  kNodeAttribute = 5,
  kNodeDomain = 7,
  kAttributeGraph = 6,
  kAttributeGraphs = 11,
};

inline void collect(Message graph, const std::string& domain, int depth, std::set<std::string>* found) {
  if (depth > 32) throw std::invalid_argument("its graphs are nested too deeply");
  uint64_t field = 0;
  bool has_content = false;
  Message node{}, part{}, inner{};
  while (graph.next(&field, &has_content, &node)) {
    if (field != kGraphNode || !has_content) continue;
    std::string name, its_domain;
    while (node.next(&field, &has_content, &part)) {
      if (!has_content) continue;
      if (field == kNodeOperator) name.assign(part.at, part.end);
      if (field == kNodeDomain) its_domain.assign(part.at, part.end);
      if (field != kNodeAttribute) continue;
      while (part.next(&field, &has_content, &inner)) {
        const bool is_graph = has_content && (field == kAttributeGraph || field == kAttributeGraphs);
        if (is_graph) collect(inner, domain, depth + 1, found);
      }
    }
    if (its_domain == domain) found->insert(name);
  }
}

struct Description {
  std::set<std::string> operators;              // of one domain, in the graph and the graphs within it
  std::map<std::string, std::string> metadata;  // of entries with the same key, the last one
};

// Throws std::invalid_argument for a damaged file.
inline Description describe(const uint8_t* data, size_t size, const std::string& domain) {
  Message model{data, data + size}, content{}, part{};
  Description found;
  bool has_graph = false, has_content = false;
  uint64_t field = 0;
  while (model.next(&field, &has_content, &content)) {
    if (!has_content) continue;
    if (field == kModelGraph) {
      has_graph = true;
      collect(content, domain, 0, &found.operators);
    } else if (field == kModelMetadata) {
      std::string key, value;
      while (content.next(&field, &has_content, &part)) {
        if (has_content && field == kEntryKey) key.assign(part.at, part.end);
        if (has_content && field == kEntryValue) value.assign(part.at, part.end);
      }
      found.metadata[key] = value;
    }
  }
  if (!has_graph) throw std::invalid_argument("it holds no graph");
  return found;
}

}  // namespace bnas::onnx
