// Foundation's values from and to C++. Everything made here is autoreleased: keep it in an Owned, or use it within the Pool.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "objc.h"

namespace torchane::apple {

id string(const std::string& text);
id data_of(const std::string& bytes);
id number(uint64_t value);
id array(const std::vector<id>& items);
id dictionary(const std::vector<std::pair<id, id>>& entries);
id file_url(const std::string& path, bool is_directory);

std::string text(id string);

// A tree of dictionaries, arrays, strings and numbers; what is none of these is its description.
struct Value {
    std::variant<std::string, int64_t, double, std::vector<Value>, std::vector<std::pair<std::string, Value>>> held;
};
Value value_of(id object, int depth = 8);

// The Fault of a call that returned NO: its NSError, or "refused" where it left none.
[[noreturn]] void throw_error(const std::string& call, id error);
// object, or Fault "nil".
id not_nil(id object, const std::string& call);

}  // namespace torchane::apple
