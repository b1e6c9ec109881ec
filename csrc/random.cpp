#include "random.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace torchane {

void bernoulli(uint8_t* to, int64_t n, double p, Twister& twister) {
    const Kernels& table = kernels();
    const int64_t below = static_cast<int64_t>(std::ceil(p * 0x1p53));  // p * 2^53 has no rounding, and what is compared with it is whole
    uint32_t given[1 + TWISTER_WORDS];  // behind a first half of a number that its block ended with
    int64_t kept = 0;
    if (twister.given < TWISTER_WORDS) {
        kept = TWISTER_WORDS - twister.given;
        table.temper(given, twister.words + twister.given, kept);
    }
    while (n > 0) {
        const int64_t count = std::min(n, kept / 2);
        table.bernoulli(to, given, count, below);
        to += count;
        n -= count;
        if (n == 0) {
            twister.given = TWISTER_WORDS - (kept - 2 * count);
            return;
        }
        kept -= 2 * count;
        if (kept == 1) given[0] = given[2 * count];
        table.twist(twister.words);
        table.temper(given + kept, twister.words, TWISTER_WORDS);
        kept += TWISTER_WORDS;
    }
}

}  // namespace torchane
