// The Mersenne Twister, and numbers of 53 bits compared with one.
#include <cstring>

#include "isa/simd.h"
#include "isa/table.h"

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"  // wide vectors are handed on within this file alone, inlined
#endif

namespace torchane::TORCHANE_ISA {
namespace {

constexpr int STEP = 16, AHEAD = 397, BEHIND = TWISTER_WORDS - AHEAD;  // AHEAD: of the word that each new one is made with
typedef uint32_t words_t __attribute__((vector_size(4 * STEP)));

template <typename T>
TORCHANE_INLINE T at(const uint32_t* from) {
    T found;
    std::memcpy(&found, from, sizeof found);
    return found;
}

template <typename T>
TORCHANE_INLINE T twisted(T high, T low, T other) {
    return other ^ (((high & 0x80000000u) | (low & 0x7fffffffu)) >> 1) ^ (-(low & 1u) & 0x9908b0dfu);
}

template <typename T>
TORCHANE_INLINE void make(uint32_t* words, int i, int other) {
    const T made = twisted(at<T>(words + i), at<T>(words + i + 1), at<T>(words + other));
    std::memcpy(words + i, &made, sizeof made);
}

void twist(uint32_t* words) {
    int i = 0;
    for (; i + STEP <= BEHIND; i += STEP) make<words_t>(words, i, i + AHEAD);
    for (; i < BEHIND; ++i) make<uint32_t>(words, i, i + AHEAD);
    for (; i + STEP <= TWISTER_WORDS - 1; i += STEP) make<words_t>(words, i, i - BEHIND);
    for (; i < TWISTER_WORDS - 1; ++i) make<uint32_t>(words, i, i - BEHIND);
    words[i] = twisted(words[i], words[0], words[i - BEHIND]);
}

template <typename T>
TORCHANE_INLINE void tempered(uint32_t* to, const uint32_t* words) {
    T y = at<T>(words);
    y ^= y >> 11;
    y ^= (y << 7) & 0x9d2c5680u;
    y ^= (y << 15) & 0xefc60000u;
    y ^= y >> 18;
    std::memcpy(to, &y, sizeof y);
}

void temper(uint32_t* to, const uint32_t* words, int64_t n) {
    int64_t i = 0;
    for (; i + STEP <= n; i += STEP) tempered<words_t>(to + i, words + i);
    for (; i < n; ++i) tempered<uint32_t>(to + i, words + i);
}

// Of each pair the first word is the upper half, of which 21 bits count.
void bernoulli(uint8_t* to, const uint32_t* pairs, int64_t n, int64_t below) {
    for (int64_t i = 0; i < n; ++i) {
        const int64_t number = static_cast<int64_t>(pairs[2 * i] & 0x1fffffu) << 32 | pairs[2 * i + 1];
        to[i] = number < below;
    }
}

}  // namespace

void fill_random(Kernels& table) {
    table.twist = twist;
    table.temper = temper;
    table.bernoulli = bernoulli;
}

}  // namespace torchane::TORCHANE_ISA
