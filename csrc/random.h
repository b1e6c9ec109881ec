// Bernoulli numbers from the Mersenne Twister, bit for bit as PyTorch's plain kernel for CPUs draws them from a generator's state.
// Source: Matsumoto & Nishimura 1998, ACM TOMACS 8(1), MT19937. Reference: torch itself, tests/native/test_random.py.
#pragma once

#include "kernels.h"

namespace torchane {

// A generator: its words, and how many of them were given out since they were made.
struct Twister {
    uint32_t words[TWISTER_WORDS];
    int64_t given;
};

// to[i] = whether a number of 53 bits, two words of the twister, is below p * 2^53. The twister moves on.
void bernoulli(uint8_t* to, int64_t n, double p, Twister& twister);

}  // namespace torchane
