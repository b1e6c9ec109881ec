// Matrix products with AMX tiles: C tiles of 32 x 32.
//
//     x = high + low      high: the upper 8 of fp16's 11 significant bits, low: the other 3
//     x y = high high + high low + low high + low low
//
// Both parts are bf16 numbers (fp16's subnormals are normal there, so nothing is flushed), the four
// products are exact, and TDPBF16PS sums them in fp32: the arithmetic stays exact products, fp32 sums.
// Infinities have no such parts (infinity times a low part of 0 is NaN): packing reports them.
// Source: Intel, Software Developer's Manual, vol. 2, TDPBF16PS; bits of the split: reference/toolchain.md.
// Reference: mil/ops/linear.py, matmul.
#include <immintrin.h>

#include "kernels.h"

#define TORCHANE_INLINE static inline __attribute__((always_inline))

namespace torchane::amx {
namespace {

constexpr int SIDE = 32;             // rows of A and columns of B in a panel: two tiles
constexpr int DEPTH = 32;            // numbers along k in one tile
constexpr int64_t TILE = 16 * 64;    // bytes: 16 rows of 64
constexpr int64_t STEP = 4 * TILE;   // high, high, low, low: a panel's bytes per DEPTH

struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// In memory from the start: GCC 12 does not see that the instruction reads all 64 bytes, and would leave
// out the stores that fill a local one.
constexpr TileConfig CONFIG;

void begin() { _tile_loadconfig(&CONFIG); }

void end() { _tile_release(); }

// Rows and columns of a 16 x 16 matrix of 32-bit words change places.
TORCHANE_INLINE void transpose(__m512i (&r)[16]) {
    __m512i t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    // r[4 q + c] holds, in its lane l, rows 4 q .. 4 q + 3 of column 4 l + c.
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
        const __m512i low_01 = _mm512_shuffle_i32x4(r[c], r[4 + c], 0x88);    // lanes 0, 2 of q = 0, 1
        const __m512i high_01 = _mm512_shuffle_i32x4(r[c], r[4 + c], 0xdd);   // lanes 1, 3
        const __m512i low_23 = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0x88);
        const __m512i high_23 = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0xdd);
        t[c] = _mm512_shuffle_i32x4(low_01, low_23, 0x88);          // lane 0: column c
        t[8 + c] = _mm512_shuffle_i32x4(low_01, low_23, 0xdd);      // lane 2: column 8 + c
        t[4 + c] = _mm512_shuffle_i32x4(high_01, high_23, 0x88);    // lane 1: column 4 + c
        t[12 + c] = _mm512_shuffle_i32x4(high_01, high_23, 0xdd);   // lane 3: column 12 + c
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) r[i] = t[i];
}

// 32 fp16 numbers -> their high and low parts in bf16, in place.
TORCHANE_INLINE void split(__m512i numbers, __m512i& high, __m512i& low) {
    const __m512i upper_words = _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29,
                                                 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
    const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000));
    const __m512 a = _mm512_cvtph_ps(_mm512_castsi512_si256(numbers));
    const __m512 b = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(numbers, 1));
    const __m512i a_bits = _mm512_castps_si512(a), b_bits = _mm512_castps_si512(b);
    high = _mm512_permutex2var_epi16(a_bits, upper_words, b_bits);
    const __m512 a_low = _mm512_sub_ps(a, _mm512_castsi512_ps(_mm512_and_si512(a_bits, upper)));
    const __m512 b_low = _mm512_sub_ps(b, _mm512_castsi512_ps(_mm512_and_si512(b_bits, upper)));
    low = _mm512_permutex2var_epi16(_mm512_castps_si512(a_low), upper_words, _mm512_castps_si512(b_low));
}

TORCHANE_INLINE __mmask32 first(int64_t n) { return n >= 32 ? ~0u : (1u << (n < 0 ? 0 : n)) - 1; }

// One tile: 16 rows or columns by 32 numbers of k, as 16 x 16 pairs of neighbours in k. Row r of the tile
// is row r of A, or pair r of B. `largest` gathers the sizes, for the search for infinities.
template <bool is_a, bool along_k>
TORCHANE_INLINE void pack_tile(char* high_tile, char* low_tile, const half_t* from, int64_t stride, int64_t count,
                               int64_t k, __m512i& largest) {
    __m512i r[16];
    const __m512i sizes = _mm512_set1_epi16(0x7fff);
    if constexpr (along_k) {
        const __mmask32 inside = first(k);
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i)
            r[i] = i < count ? _mm512_maskz_loadu_epi16(inside, from + i * stride) : _mm512_setzero_si512();
    } else {
        const __m512i pairs = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6,
                                               37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
        const __mmask16 inside = static_cast<__mmask16>(first(count));
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) {
            const __m256i even = 2 * i < k ? _mm256_maskz_loadu_epi16(inside, from + 2 * i * stride) : _mm256_setzero_si256();
            const __m256i odd =
                2 * i + 1 < k ? _mm256_maskz_loadu_epi16(inside, from + (2 * i + 1) * stride) : _mm256_setzero_si256();
            r[i] = _mm512_permutex2var_epi16(_mm512_castsi256_si512(even), pairs, _mm512_castsi256_si512(odd));
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) largest = _mm512_max_epu16(largest, _mm512_and_si512(r[i], sizes));
    if constexpr (is_a != along_k) transpose(r);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
        __m512i high, low;
        split(r[i], high, low);
        _mm512_store_si512(high_tile + i * 64, high);
        _mm512_store_si512(low_tile + i * 64, low);
    }
}

template <bool is_a, bool along_k>
bool pack_as(char* panel, const half_t* from, int64_t stride, int64_t count, int64_t k) {
    __m512i largest = _mm512_setzero_si512();
    const int64_t k_stride = along_k ? 1 : stride, next_tile = 16 * (along_k ? stride : 1);
    for (int64_t p = 0; p < k; p += DEPTH, panel += STEP)
        for (int tile = 0; tile < 2; ++tile)
            pack_tile<is_a, along_k>(panel + tile * TILE, panel + (2 + tile) * TILE, from + p * k_stride + tile * next_tile,
                                     stride, count - 16 * tile, k - p, largest);
    return _mm512_cmpge_epu16_mask(largest, _mm512_set1_epi16(0x7c00)) == 0;
}

template <bool is_a>
bool pack(void* panel, const half_t* from, int64_t stride, bool along_k, int64_t count, int64_t k) {
    char* to = static_cast<char*>(panel);
    return along_k ? pack_as<is_a, true>(to, from, stride, count, k) : pack_as<is_a, false>(to, from, stride, count, k);
}

// Tiles 0-3 are C, 4 and 5 two tiles of A, 6 and 7 two of B. A product takes 52 cycles and one begins every
// 16: the four of C take turns, so that none waits for itself.
void multiply(const void* panel_a, const void* panel_b, int64_t k, float* c, bool add, int64_t) {
    const char* a = static_cast<const char*>(panel_a);
    const char* b = static_cast<const char*>(panel_b);
    constexpr int64_t C_ROW = SIDE * sizeof(float);
    if (add) {
        _tile_loadd(0, c, C_ROW);
        _tile_loadd(1, c + 16, C_ROW);
        _tile_loadd(2, c + 16 * SIDE, C_ROW);
        _tile_loadd(3, c + 16 * SIDE + 16, C_ROW);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t p = 0; p < k; p += DEPTH, a += STEP, b += STEP) {
        _tile_loadd(4, a, 64);  // high high
        _tile_loadd(6, b, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b + TILE, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a + TILE, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        _tile_loadd(6, b + 2 * TILE, 64);  // high low
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b + 3 * TILE, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        _tile_loadd(4, a + 2 * TILE, 64);  // low low
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a + 3 * TILE, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        _tile_loadd(6, b, 64);  // low high
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b + TILE, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, C_ROW);
    _tile_stored(1, c + 16, C_ROW);
    _tile_stored(2, c + 16 * SIDE, C_ROW);
    _tile_stored(3, c + 16 * SIDE + 16, C_ROW);
}

void store_rows(half_t* to, int64_t stride, const float* c, int64_t rows, int64_t columns) {
    const __mmask16 left = static_cast<__mmask16>(first(columns)), right = static_cast<__mmask16>(first(columns) >> 16);
    for (int64_t i = 0; i < rows; ++i, to += stride, c += SIDE) {
        constexpr int to_nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        _mm256_mask_storeu_epi16(to, left, _mm512_cvtps_ph(_mm512_loadu_ps(c), to_nearest));
        _mm256_mask_storeu_epi16(to + 16, right, _mm512_cvtps_ph(_mm512_loadu_ps(c + 16), to_nearest));
    }
}

int64_t panel_bytes(int64_t k) { return k / DEPTH * STEP; }

}  // namespace

const MatmulKernel& matmul() {
    static const MatmulKernel kernel = {
        .rows = SIDE,
        .columns = SIDE,
        .depth = DEPTH,
        .panel_a_bytes = panel_bytes,
        .panel_b_bytes = panel_bytes,
        .pack_a = pack<true>,
        .pack_b = pack<false>,
        .multiply = multiply,
        .store = store_rows,
        .begin = begin,
        .end = end,
        .needs_finite = true,
    };
    return kernel;
}

}  // namespace torchane::amx
