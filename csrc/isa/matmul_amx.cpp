// Matrix products with AMX tiles: C tiles of 32 x 32.
//
//     x = high + low      high: the upper 8 of fp16's 11 significant bits, low: the other 3
//     x y = high high + high low + low high + low low
//
// Both parts are bf16 numbers (fp16's subnormals are normal there, so nothing is flushed), the four
// products are exact, and TDPBF16PS sums them in fp32: the arithmetic stays exact products, fp32 sums.
// Infinities have no such parts (infinity times a low part of 0 is NaN): packing reports them. `fast` rounds x and y to bf16 and
// takes one product.
// Source: Intel, Software Developer's Manual, vol. 2, TDPBF16PS; bits of the split: reference/toolchain.md.
// Reference: mil/ops/linear.py, matmul.
#include "kernels.h"
#include "isa/words.h"

namespace torchane::amx {
namespace {

constexpr int SIDE = 32;             // rows of A and columns of B in a panel: two tiles
constexpr int DEPTH = 32;            // numbers along k in one tile
constexpr int64_t TILE = 16 * 64;    // bytes: 16 rows of 64

// A panel's bytes per DEPTH: high, high, low, low; in `fast`, which has no low parts, the two rounded tiles.
constexpr int64_t step_bytes(bool exact) { return (exact ? 4 : 2) * TILE; }

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

// One tile: 16 rows or columns by 32 numbers of k, as 16 x 16 pairs of neighbours in k. Row r of the tile
// is row r of A, or pair r of B. `largest` gathers the sizes, for the search for infinities.
template <bool exact, bool is_a, bool along_k>
TORCHANE_INLINE void pack_tile(char* high_tile, char* low_tile, const half_t* from, int64_t stride, int64_t count,
                               int64_t k, __m512i& largest) {
    __m512i r[16];
    const __m512i sizes = _mm512_set1_epi16(0x7fff);
    read_pairs<along_k>(r, from, stride, count, k);
    if constexpr (exact)
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) largest = _mm512_max_epu16(largest, _mm512_and_si512(r[i], sizes));
    if constexpr (is_a != along_k) transpose(r);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
        __m512i high, low;
        if constexpr (exact) {
            split(r[i], high, low);
            _mm512_store_si512(low_tile + i * 64, low);
        } else {
            high = rounded(r[i]);
        }
        _mm512_store_si512(high_tile + i * 64, high);
    }
}

template <bool exact, bool is_a, bool along_k>
bool pack_as(char* panel, const half_t* from, int64_t stride, int64_t count, int64_t k) {
    __m512i largest = _mm512_setzero_si512();
    const int64_t k_stride = along_k ? 1 : stride, next_tile = 16 * (along_k ? stride : 1);
    for (int64_t p = 0; p < k; p += DEPTH, panel += step_bytes(exact))
        for (int tile = 0; tile < 2; ++tile)
            pack_tile<exact, is_a, along_k>(panel + tile * TILE, panel + (2 + tile) * TILE, from + p * k_stride + tile * next_tile,
                                            stride, count - 16 * tile, k - p, largest);
    return _mm512_cmpge_epu16_mask(largest, _mm512_set1_epi16(0x7c00)) == 0;
}

template <bool exact, bool is_a>
bool pack(void* panel, const half_t* from, int64_t stride, bool along_k, int64_t count, int64_t k) {
    char* to = static_cast<char*>(panel);
    return along_k ? pack_as<exact, is_a, true>(to, from, stride, count, k) : pack_as<exact, is_a, false>(to, from, stride, count, k);
}

// Tiles 0-3 are C, 4 and 5 two tiles of A, 6 and 7 two of B. A product takes 52 cycles and one begins every
// 16: the four of C take turns, so that none waits for itself.
template <bool exact>
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
    for (int64_t p = 0; p < k; p += DEPTH, a += step_bytes(exact), b += step_bytes(exact)) {
        _tile_loadd(4, a, 64);  // high high
        _tile_loadd(6, b, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b + TILE, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a + TILE, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        if constexpr (exact) {
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
    }
    _tile_stored(0, c, C_ROW);
    _tile_stored(1, c + 16, C_ROW);
    _tile_stored(2, c + 16 * SIDE, C_ROW);
    _tile_stored(3, c + 16 * SIDE + 16, C_ROW);
}

template <bool exact>
int64_t panel_bytes(int64_t k) { return k / DEPTH * step_bytes(exact); }

template <bool exact>
const MatmulKernel& kernel() {
    static const MatmulKernel made = {
        .rows = SIDE,
        .columns = SIDE,
        .depth = DEPTH,
        .panel_a_bytes = panel_bytes<exact>,
        .panel_b_bytes = panel_bytes<exact>,
        .pack_a = pack<exact, true>,
        .pack_b = pack<exact, false>,
        .multiply = multiply<exact>,
        .store = store_rows_of_32,
        .begin = begin,
        .end = end,
        .needs_finite = exact,
        .piece = DEPTH,
    };
    return made;
}

}  // namespace

const MatmulKernel& matmul() { return kernel<true>(); }
const MatmulKernel& fast_matmul() { return kernel<false>(); }

}  // namespace torchane::amx
