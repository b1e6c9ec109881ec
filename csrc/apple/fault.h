// What a call into Apple's framework came to that was not its result. Becomes torchane.errors.AppleError.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

namespace torchane::apple {

struct Fault : std::runtime_error {
    // kind: "missing" (library, class, selector, function), "encoding" (a selector with other types), "exception"
    // (an NSException), "nil" (no object where one is due), "refused" (NO or a status, and no NSError), "error" (an
    // NSError), "status" (a number other than 0 from a C function), "partial" (success, and an output not wholly written), "forked"
    // (nothing was called: the process is a fork). call: the selector or function, as people write it.
    Fault(std::string kind, std::string call, std::string text, std::string domain = "", int64_t code = 0)
        : std::runtime_error(call + ": " + text), kind(std::move(kind)), call(std::move(call)), text(std::move(text)),
          domain(std::move(domain)), code(code) {}

    std::string kind, call, text, domain;
    int64_t code;
};

}  // namespace torchane::apple
