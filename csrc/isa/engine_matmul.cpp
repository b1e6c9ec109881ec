// Matrix products in the engine's fixed point. Reference: mil/engine/products.py.
//
//     q = a 2^16 b            exact in fp32: 22 bits
//     t = trunc(q +- 1/2)     the product in units of 2^-16, halves away from zero; exact, see below
//     t counts where 2^e(b) >= 2^(-16 - e(a)); sums are 32-bit integers
//
// q + 1/2 is exact where it matters: if |q| < 2^21 its bits and the half span 24 at most, or the sum is below 1
// and truncates to 0 either way; above, q is an integer, and a rounded half leaves it.
// A sum that reaches 2^31 units is an infinity. Where no partial sum of a tile can, by the norms of its rows and
// columns (Cauchy and Schwarz), 32 bits hold everything; other tiles are added in 64 bits, product by product.
#include "isa/engine_simd.h"
#include "isa/table.h"

namespace torchane::TORCHANE_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int ROWS = 8;
#else
constexpr int ROWS = 4;
#endif
constexpr int VECTORS = 2;
constexpr int COLUMNS = VECTORS * LANES;
constexpr float UNIT = 65536.0f;
constexpr int64_t LIMIT = int64_t{1} << 31;
constexpr int HEADER = 16;  // floats before a panel: the greatest norm of its rows

// A tile of sums between slabs, and of what has left the range: 0, 1 or -1.
struct Sums {
    int32_t units[ROWS * COLUMNS];
    int32_t gone[ROWS * COLUMNS];
};

// 2^e(v) for a decoded number, e held at -14.
TORCHANE_INLINE float power(float v) {
    const uint32_t exponent = float_to_bits(v) & 0x7f800000;
    return bits_to_float(exponent < (113u << 23) ? 113u << 23 : exponent);
}

// The values, then what decides which products count: panel[k][2][width].
template <int WIDTH, bool IS_A>
bool pack(void* to, const half_t* from, int64_t stride, bool along_k, int64_t count, int64_t k) {
    float* header = static_cast<float*>(to);
    float* panel = header + HEADER;
    double squares[WIDTH] = {};
    const auto put = [&](int64_t p, int64_t i, half_t h) {
        const float v = engine_decode(h), s = power(v);
        float* at = panel + p * 2 * WIDTH + i;
        at[0] = IS_A ? v * UNIT : v;
        // For a: the least 2^e(b) with which a product counts, 2^(-16 - e(a)).
        at[WIDTH] = IS_A ? bits_to_float(((254u - 16) << 23) - float_to_bits(s)) : s;
        squares[i] += static_cast<double>(v) * v;
    };
    if (count < WIDTH) __builtin_memset(panel, 0, sizeof(float) * static_cast<size_t>(k * 2 * WIDTH));
    if (along_k) {
        for (int64_t i = 0; i < count; ++i)
            for (int64_t p = 0; p < k; ++p) put(p, i, from[i * stride + p]);
    } else if (count == WIDTH && WIDTH % LANES == 0) {
        for (int64_t p = 0; p < k; ++p)
            for (int64_t i = 0; i + LANES <= WIDTH; i += LANES) {
                const vn v = decode(from + p * stride + i);
                const vi exponent = (vi)v & 0x7f800000, s = exponent < (113 << 23) ? (vi{} + (113 << 23)) : exponent;
                float* at = panel + p * 2 * WIDTH + i;
                store(at, (vf)(IS_A ? v * UNIT : v));
                store(at + WIDTH, (vf)(IS_A ? ((254 - 16) << 23) - s : s));
                for (int l = 0; l < LANES; ++l) squares[i + l] += static_cast<double>(v[l]) * v[l];
            }
    } else {
        for (int64_t p = 0; p < k; ++p)
            for (int64_t i = 0; i < count; ++i) put(p, i, from[p * stride + i]);
    }
    double greatest = 0;
    for (int i = 0; i < WIDTH; ++i) greatest = squares[i] > greatest ? squares[i] : greatest;
    header[0] = static_cast<float>(__builtin_sqrt(greatest) * 1.000001);
    return true;
}

void safe(const float* a, const float* b, int64_t k, Sums* sums) {
    for (int i = 0; i < ROWS; ++i) {
        int64_t total[COLUMNS], gone[COLUMNS];
        for (int j = 0; j < COLUMNS; ++j) total[j] = sums->units[i * COLUMNS + j], gone[j] = sums->gone[i * COLUMNS + j];
        for (int64_t p = 0; p < k; ++p) {
            const float x = a[p * 2 * ROWS + i], least = a[p * 2 * ROWS + ROWS + i];
            const float* row = b + p * 2 * COLUMNS;
            for (int j = 0; j < COLUMNS; ++j) {
                const float q = x * row[j];
                const int64_t units = static_cast<int64_t>(q + __builtin_copysignf(0.5f, q));
                total[j] += row[COLUMNS + j] >= least ? units : 0;
                const int64_t out = total[j] >= LIMIT ? 1 : total[j] <= -LIMIT ? -1 : 0;
                gone[j] = gone[j] != 0 ? gone[j] : out;
                total[j] = gone[j] != 0 ? 0 : total[j];  // an infinity stays; nothing grows beyond 64 bits
            }
        }
        for (int j = 0; j < COLUMNS; ++j)
            sums->units[i * COLUMNS + j] = static_cast<int32_t>(total[j]), sums->gone[i * COLUMNS + j] = static_cast<int32_t>(gone[j]);
    }
}

TORCHANE_INLINE vi load_units(const int32_t* p) {
    vi v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}
TORCHANE_INLINE void store_units(int32_t* p, vi v) { __builtin_memcpy(p, &v, sizeof v); }

#if defined(__AVX512F__)
TORCHANE_INLINE vi added(vi sum, vf x, vf least, vf y, vf power_of_y) {
    const __m512i sign = _mm512_set1_epi32(INT32_MIN), half = _mm512_castps_si512(_mm512_set1_ps(0.5f));
    // Bit by bit ((x ^ y) & sign) | half; the sign bit of a half is 0 and sign has no other bit.
    const __m512i differs = _mm512_xor_si512(_mm512_castps_si512(x), _mm512_castps_si512(y));
    const vf signed_half = _mm512_castsi512_ps(_mm512_ternarylogic_epi32(differs, sign, half, 0xea));
    const __m512i units = _mm512_cvttps_epi32(_mm512_fmadd_ps(x, y, signed_half));
    return (vi)_mm512_mask_add_epi32((__m512i)sum, _mm512_cmp_ps_mask(power_of_y, least, _CMP_GE_OQ), (__m512i)sum, units);
}
#else
TORCHANE_INLINE vi added(vi sum, vf x, vf least, vf y, vf power_of_y) {
    const vi differs = ((vi)x ^ (vi)y) & INT32_MIN;
    const vn half = (vn)(differs | 0x3f000000);
    const vi units = __builtin_convertvector((vn)x * (vn)y + half, vi);
    return sum + (units & ((vn)power_of_y >= (vn)least));
}
#endif

void multiply(const void* panel_a, const void* panel_b, int64_t k, float* c, bool add) {
    const float* a = static_cast<const float*>(panel_a) + HEADER;
    const float* b = static_cast<const float*>(panel_b) + HEADER;
    Sums* kept = reinterpret_cast<Sums*>(c);
    if (!add) __builtin_memset(kept, 0, sizeof *kept);
    int64_t carried = 0;
    if (add)
        for (int i = 0; i < ROWS * COLUMNS; ++i) {
            const int64_t size = kept->gone[i] != 0 ? LIMIT : kept->units[i] < 0 ? -static_cast<int64_t>(kept->units[i]) : kept->units[i];
            carried = size > carried ? size : carried;
        }
    const double reach = static_cast<double>(a[-HEADER]) * b[-HEADER] * UNIT + static_cast<double>(k) + static_cast<double>(carried);
    if (!(reach < static_cast<double>(LIMIT))) return safe(a, b, k, kept);

    vi sums[ROWS][VECTORS];
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) sums[i][v] = load_units(kept->units + i * COLUMNS + v * LANES);
    for (int64_t p = 0; p < k; ++p, a += 2 * ROWS, b += 2 * COLUMNS) {
        vf row[VECTORS], powers[VECTORS];
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) row[v] = load(b + v * LANES), powers[v] = load(b + COLUMNS + v * LANES);
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; ++i) {
            const vf x = set1(a[i]), least = set1(a[ROWS + i]);
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; ++v) sums[i][v] = added(sums[i][v], x, least, row[v], powers[v]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) store_units(kept->units + i * COLUMNS + v * LANES, sums[i][v]);
}

// From units to fp16. Of 31 bits the lower 7 go where there are more than 24; the bit above them then says
// whether they held anything.
TORCHANE_INLINE vh to_half(vi units, vi gone) {
    const vi size = units < 0 ? -units : units;
    const vi cut = (size & ~127) | (((size & 127) != 0) & 128);
    const vn value = __builtin_convertvector(size < (1 << 24) ? size : cut, vn) * (1.0f / UNIT);
    const vh found = encode((vn)((vi)value | (units & INT32_MIN)));
    const vi wide = __builtin_convertvector(found, vi), out = gone != 0;
    return __builtin_convertvector((wide & ~out) | (((gone & 0x8000) | 0x7c00) & out), vh);
}

void store_rows(half_t* to, int64_t stride, const float* c, int64_t rows, int64_t columns) {
    const Sums* sums = reinterpret_cast<const Sums*>(c);
    for (int64_t i = 0; i < rows; ++i, to += stride) {
        half_t whole[COLUMNS];
        for (int j = 0; j < COLUMNS; j += LANES) {
            const vh found = to_half(load_units(sums->units + i * COLUMNS + j), load_units(sums->gone + i * COLUMNS + j));
            __builtin_memcpy(whole + j, &found, sizeof found);
        }
        __builtin_memcpy(to, whole, static_cast<size_t>(columns) * sizeof(half_t));
    }
}

int64_t panel_a_bytes(int64_t k) { return (HEADER + k * 2 * ROWS) * static_cast<int64_t>(sizeof(float)); }
int64_t panel_b_bytes(int64_t k) { return (HEADER + k * 2 * COLUMNS) * static_cast<int64_t>(sizeof(float)); }
void nothing() {}

}  // namespace

void fill_engine_matmul(Kernels& table) {
    table.matmul = {
        .rows = ROWS,
        .columns = COLUMNS,
        .depth = 1,
        .panel_a_bytes = panel_a_bytes,
        .panel_b_bytes = panel_b_bytes,
        .pack_a = pack<ROWS, true>,
        .pack_b = pack<COLUMNS, false>,
        .multiply = multiply,
        .store = store_rows,
        .begin = nothing,
        .end = nothing,
        .needs_finite = false,
        .sum_bytes = 2 * sizeof(int32_t),
    };
}

}  // namespace torchane::TORCHANE_ISA
