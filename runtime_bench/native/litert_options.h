// The options of a custom operator: a flexbuffer holding one map from names to whole numbers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>

namespace bnas::litert {

// Every whole number of the map; entries of other types are left out, and names cut after 64 characters. Throws
// std::invalid_argument if the bytes are not a map, or point outside of themselves.
std::map<std::string, int64_t> parse_options(const void* data, size_t size);

}  // namespace bnas::litert
