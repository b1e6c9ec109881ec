// Espresso's C functions, found by name. Each returns int64_t, 0 for success.
#pragma once

#include <cstdint>
#include <string>

#include "objc.h"

namespace torchane::apple {

template <class... A>
int64_t e5_call(const char* name, A... args) {
    auto* function = reinterpret_cast<int64_t (*)(A...)>(required(name));
    Sending sending;
    try {
        return function(args...);
    } catch (const std::exception&) {
        throw;
#ifdef __GLIBCXX__
    } catch (const abi::__forced_unwind&) {
        throw;
#endif
    } catch (...) {
        rethrow_foreign(name);
    }
}

// Throws Fault "status" unless the status is 0, with the text of e5rt_get_last_error_message where there is one.
void e5_check(const char* name, int64_t status);

}  // namespace torchane::apple
