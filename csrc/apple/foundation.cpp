#include "foundation.h"

namespace torchane::apple {
namespace {

bool is_a(id object, const char* type) {
    id found = class_named(type);
    return found != nullptr && call<bool, id>(object, "isKindOfClass:", found);
}

size_t count(id collection) { return call<unsigned long>(collection, "count"); }

id item(id array, size_t index) { return call<id, unsigned long>(array, "objectAtIndex:", index); }

}  // namespace

id string(const std::string& text) {
    return not_nil(call<id, const char*>(required_class("NSString"), "stringWithUTF8String:", text.c_str()), "+[NSString stringWithUTF8String:]");
}

id data_of(const std::string& bytes) {
    return not_nil(call<id, const void*, unsigned long>(required_class("NSData"), "dataWithBytes:length:", bytes.data(), bytes.size()),
                   "+[NSData dataWithBytes:length:]");
}

id number(uint64_t value) {
    return not_nil(call<id, unsigned long long>(required_class("NSNumber"), "numberWithUnsignedLongLong:", value),
                   "+[NSNumber numberWithUnsignedLongLong:]");
}

id array(const std::vector<id>& items) {
    return not_nil(call<id, const id*, unsigned long>(required_class("NSArray"), "arrayWithObjects:count:", items.data(), items.size()),
                   "+[NSArray arrayWithObjects:count:]");
}

id dictionary(const std::vector<std::pair<id, id>>& entries) {
    std::vector<id> keys, values;
    for (const auto& [key, value] : entries) keys.push_back(key), values.push_back(value);
    return not_nil(call<id, const id*, const id*, unsigned long>(required_class("NSDictionary"), "dictionaryWithObjects:forKeys:count:",
                                                                 values.data(), keys.data(), keys.size()),
                   "+[NSDictionary dictionaryWithObjects:forKeys:count:]");
}

id file_url(const std::string& path, bool is_directory) {
    return not_nil(call<id, id, bool>(required_class("NSURL"), "fileURLWithPath:isDirectory:", string(path), is_directory),
                   "+[NSURL fileURLWithPath:isDirectory:]");
}

std::string text(id string) {
    if (string == nullptr) return "";
    const char* bytes = call<const char*>(string, "UTF8String");
    return bytes == nullptr ? "" : bytes;
}

Value value_of(id object, int depth) {
    if (object == nullptr) return {std::string()};
    if (is_a(object, "NSString")) return {text(object)};
    if (is_a(object, "NSNumber")) {
        const std::string type = call<const char*>(object, "objCType");
        if (type == "d" || type == "f") return {call<double>(object, "doubleValue")};
        return {static_cast<int64_t>(call<long long>(object, "longLongValue"))};
    }
    if (depth > 0 && is_a(object, "NSArray")) {
        std::vector<Value> items;
        for (size_t i = 0; i < count(object); ++i) items.push_back(value_of(item(object, i), depth - 1));
        return {std::move(items)};
    }
    if (depth > 0 && is_a(object, "NSDictionary")) {
        std::vector<std::pair<std::string, Value>> entries;
        id keys = call<id>(object, "allKeys");
        for (size_t i = 0; i < count(keys); ++i) {
            id key = item(keys, i);
            entries.emplace_back(text(call<id>(key, "description")), value_of(call<id, id>(object, "objectForKey:", key), depth - 1));
        }
        return {std::move(entries)};
    }
    return {text(call<id>(object, "description"))};
}

void throw_error(const std::string& call_, id error) {
    if (error == nullptr) throw Fault("refused", call_, "it returned NO and gave no error");
    std::string said = text(call<id>(error, "localizedDescription"));
    throw Fault("error", call_, said, text(call<id>(error, "domain")), call<long>(error, "code"));
}

id not_nil(id object, const std::string& call) {
    if (object == nullptr) throw Fault("nil", call, "it returned nil");
    return object;
}

}  // namespace torchane::apple
