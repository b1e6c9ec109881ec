// The bridge without Apple's libraries, as on arm64 under emulation: every entrance refuses by name. Prints what does not.
#include <cstdio>
#include <functional>
#include <string>

#include "apple/program.h"

using namespace torchane::apple;

namespace {

int failures = 0;

void refuses(const char* what, const std::function<void()>& act, const std::string& kind) {
    try {
        act();
    } catch (const Fault& fault) {
        if (fault.kind == kind && !fault.call.empty() && !fault.text.empty()) return;
        std::printf("FAILED: %s: %s, %s\n", what, fault.kind.c_str(), fault.what());
        ++failures;
        return;
    }
    std::printf("FAILED: %s went through\n", what);
    ++failures;
}

}  // namespace

int main() {
    refuses("a library that is not there", [] { open({"/usr/lib/libobjc.A.dylib"}); }, "missing");
    if (is_open()) std::printf("FAILED: it calls itself open\n"), ++failures;
    refuses("the memory route", [] { check_memory_route(); }, "missing");
    refuses("the client route", [] { check_client_route(); }, "missing");
    refuses("Espresso's route", [] { check_e5_route(); }, "missing");
    refuses("a surface", [] { Surface surface(Surface::Kind::iosurface, 64); }, "missing");
    refuses("a program", [] { make_memory_program(Source{"/tmp", "program(1.3) {}", {}, {"x"}, {"y"}}); }, "missing");
    std::printf(failures == 0 ? "the bridge refuses by name\n" : "%d failures\n", failures);
    return failures == 0 ? 0 : 1;
}
