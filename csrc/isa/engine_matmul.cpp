// Matrix products in the engine's fixed point. Reference: mil/engine/products.py.
//
//     q = a 2^16 b        exact in fp32: 22 bits
//     n = q rounded       the product in units of 2^-16, halves away from zero
//     n counts where 2^e(b) >= 2^(-16 - e(a)); sums are 32-bit integers
//
// Small products, |q| < 2^22, round as they are added to a number whose last bit is a unit:
//
//     bits(x y + 1.5 2^23) = bits(1.5 2^23) + n        x = a 2^16, one fp32 step further from zero
//
// That step, less than a quarter of the last place of q, sends halves away from zero and moves nothing else; where
// x y is rounded first (no fused add), it grows to a quarter at most. Larger products are rounded one by one:
// trunc(q +- 1/2) is exact, for q is an integer from 2^21 on, and below it q and the half span 24 bits.
//
// A sum that reaches 2^31 units is an infinity. Where no partial sum of a tile can, by the norms of its rows and
// columns (Cauchy and Schwarz), 32 bits hold everything; the rest is added in 64 bits, product by product. Both are
// decided anew for every CHUNK of k.
#include "isa/engine_simd.h"
#include "isa/table.h"
#include "transpose.h"

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
constexpr float MAGIC = 12582912.0f;   // 1.5 2^23
constexpr uint32_t MAGIC_BITS = 0x4b400000;
constexpr float SMALL = 63.0f;         // of |a b|: |q| stays below 2^22
constexpr int64_t LIMIT = int64_t{1} << 31;
constexpr int64_t CHUNK = 128;

typedef uint32_t vu __attribute__((vector_size(LANES * 4)));

// A tile of sums between slabs, and of what has left the range: 0, 1 or -1.
struct Sums {
    uint32_t units[ROWS * COLUMNS];  // of 32-bit integers in two's complement: they wrap while they are added up
    int32_t gone[ROWS * COLUMNS];
};

int64_t chunks_of(int64_t k) { return (k + CHUNK - 1) / CHUNK; }
int64_t header_of(int64_t k) { return (2 * chunks_of(k) + 15) / 16 * 16; }
int64_t smaller_of(int64_t a, int64_t b) { return a < b ? a : b; }

// bounds[chunk][2]: the greatest norm of a row and the largest number; values[k][width]; powers[k][width], which
// decide what products count: 2^e(b), and for a the least 2^e(b) with which it does, 2^(-16 - e(a)).
template <int WIDTH>
struct Panel {
    const float *bounds, *values, *powers;
    Panel(const void* panel, int64_t k)
        : bounds(static_cast<const float*>(panel)), values(bounds + header_of(k)), powers(values + k * WIDTH) {}
};

template <int WIDTH, bool IS_A>
bool pack(void* to, const half_t* from, int64_t stride, bool along_k, int64_t count, int64_t k) {
    constexpr int64_t SLACK = LANES;  // whole vectors are read
    constexpr int64_t SIDE = WIDTH > LANES ? WIDTH : LANES;
    float* bounds = static_cast<float*>(to);
    float* values = bounds + header_of(k);
    float* powers = values + k * WIDTH;
    half_t block[CHUNK * WIDTH + SLACK] = {};
    for (int64_t begin = 0; begin < k; begin += CHUNK, bounds += 2) {
        const int64_t depth = smaller_of(CHUNK, k - begin), size = depth * WIDTH;
        if (along_k) transpose_16(block, WIDTH, from + begin, stride, count, depth);
        else if (count == WIDTH)
            for (int64_t p = 0; p < depth; ++p) __builtin_memcpy(block + p * WIDTH, from + (begin + p) * stride, WIDTH * sizeof(half_t));
        else
            for (int64_t p = 0; p < depth; ++p)
                __builtin_memcpy(block + p * WIDTH, from + (begin + p) * stride, static_cast<size_t>(count) * sizeof(half_t));
        // Entry l of these speaks for the row l % WIDTH.
        vn squares[SIDE / LANES] = {}, largest = {};
        for (int64_t i = 0; i < size; i += SIDE)
#pragma GCC unroll 2
            for (int64_t part = 0; part < SIDE / LANES; ++part) {
                const int64_t at = i + part * LANES, n = size - at;
                vn v = decode(block + at);
                if (n < LANES) v = decode_n(block + at, n);
                const vi bits = (vi)v, exponent = bits & 0x7f800000, s = exponent < (113 << 23) ? (vi{} + (113 << 23)) : exponent;
                const vn size_of_v = (vn)(bits & 0x7fffffff);
                squares[part] += v * v;
                largest = size_of_v > largest ? size_of_v : largest;
                const vi scaled = (vi)(v * UNIT);
                const vf value = IS_A ? (vf)(scaled - (size_of_v > 0.0f)) : (vf)v;  // true is -1: one step from zero
                const vf power = (vf)(IS_A ? ((254 - 16) << 23) - s : s);
                if (n >= LANES) store(values + at, value), store(powers + at, power);
                else store_n(values + at, value, n), store_n(powers + at, power, n);
            }
        float sums[WIDTH] = {}, greatest = 0, top = 0;
        for (int64_t i = 0; i < SIDE; ++i) sums[i % WIDTH] += squares[i / LANES][i % LANES];
        for (int64_t i = 0; i < WIDTH; ++i) greatest = sums[i] > greatest ? sums[i] : greatest;
        for (int64_t l = 0; l < LANES; ++l) top = largest[l] > top ? largest[l] : top;
        bounds[0] = __builtin_sqrtf(greatest) * 1.0001f;  // far above what fp32 loses in CHUNK squares
        bounds[1] = top;
        values += size;
        powers += size;
    }
    return true;
}

// x and least: one number of a's panel. The number itself: without the step from zero.
TORCHANE_INLINE float number(float x) { return bits_to_float(float_to_bits(x) & ~1u); }

void safe(const Panel<ROWS>& a, const Panel<COLUMNS>& b, int64_t begin, int64_t end, Sums* sums) {
    for (int i = 0; i < ROWS; ++i) {
        int64_t total[COLUMNS], gone[COLUMNS];
        for (int j = 0; j < COLUMNS; ++j)
            total[j] = static_cast<int32_t>(sums->units[i * COLUMNS + j]), gone[j] = sums->gone[i * COLUMNS + j];
        for (int64_t p = begin; p < end; ++p) {
            const float x = number(a.values[p * ROWS + i]), least = a.powers[p * ROWS + i];
            const float *row = b.values + p * COLUMNS, *powers = b.powers + p * COLUMNS;
            for (int j = 0; j < COLUMNS; ++j) {
                const float q = x * row[j];
                const int64_t units = static_cast<int64_t>(q + __builtin_copysignf(0.5f, q));
                total[j] += powers[j] >= least ? units : 0;
                const int64_t out = total[j] >= LIMIT ? 1 : total[j] <= -LIMIT ? -1 : 0;
                gone[j] = gone[j] != 0 ? gone[j] : out;
                total[j] = gone[j] != 0 ? 0 : total[j];  // an infinity stays; nothing grows beyond 64 bits
            }
        }
        for (int j = 0; j < COLUMNS; ++j)
            sums->units[i * COLUMNS + j] = static_cast<uint32_t>(total[j]), sums->gone[i * COLUMNS + j] = static_cast<int32_t>(gone[j]);
    }
}

TORCHANE_INLINE vu load_units(const uint32_t* p) {
    vu v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}
TORCHANE_INLINE vi load_gone(const int32_t* p) {
    vi v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}
TORCHANE_INLINE void store_units(uint32_t* p, vu v) { __builtin_memcpy(p, &v, sizeof v); }

// sum + bits(x y + MAGIC), y taken as 0 where the product does not count.
TORCHANE_INLINE vu added_small(vu sum, vf x, vf least, vf y, vf power_of_y) {
#if defined(__AVX512F__)
    const vf found = _mm512_mask3_fmadd_ps(x, y, set1(MAGIC), _mm512_cmp_ps_mask(power_of_y, least, _CMP_GE_OQ));
#else
    const vf found = fma(x, (vf)((vi)y & ((vn)power_of_y >= (vn)least)), set1(MAGIC));
#endif
    return sum + (vu)found;
}

// sum + trunc(q +- 1/2).
TORCHANE_INLINE vu added(vu sum, vf x, vf least, vf y, vf power_of_y) {
    const vi differs = ((vi)x ^ (vi)y) & INT32_MIN;
    const vn half = (vn)(differs | 0x3f000000);
    const vi units = __builtin_convertvector((vn)x * (vn)y + half, vi);
    return sum + (vu)(units & ((vn)power_of_y >= (vn)least));
}

template <bool ARE_SMALL>
void run(const Panel<ROWS>& a, const Panel<COLUMNS>& b, int64_t begin, int64_t end, Sums* kept) {
    vu sums[ROWS][VECTORS];
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) sums[i][v] = load_units(kept->units + i * COLUMNS + v * LANES);
    const float *a_values = a.values, *a_powers = a.powers, *b_values = b.values, *b_powers = b.powers;
    for (int64_t p = begin; p < end; ++p) {
        vf row[VECTORS], powers[VECTORS];
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v)
            row[v] = load(b_values + p * COLUMNS + v * LANES), powers[v] = load(b_powers + p * COLUMNS + v * LANES);
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; ++i) {
            const float x = a_values[p * ROWS + i];
            const vf wide = set1(ARE_SMALL ? x : number(x)), least = set1(a_powers[p * ROWS + i]);
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; ++v)
                sums[i][v] = ARE_SMALL ? added_small(sums[i][v], wide, least, row[v], powers[v])
                                       : added(sums[i][v], wide, least, row[v], powers[v]);
        }
    }
    const vu magic = vu{} + (ARE_SMALL ? static_cast<uint32_t>(end - begin) * MAGIC_BITS : 0);
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) store_units(kept->units + i * COLUMNS + v * LANES, sums[i][v] - magic);
}

// Of the sums that are still in the range.
int64_t largest(const Sums& sums) {
    int64_t found = 0;
    for (int i = 0; i < ROWS * COLUMNS; ++i) {
        const int64_t units = static_cast<int32_t>(sums.units[i]), size = units < 0 ? -units : units;
        found = sums.gone[i] == 0 && size > found ? size : found;
    }
    return found;
}

void multiply(const void* panel_a, const void* panel_b, int64_t k, float* c, bool add, int64_t) {
    const Panel<ROWS> a(panel_a, k);
    const Panel<COLUMNS> b(panel_b, k);
    Sums* kept = reinterpret_cast<Sums*>(c);
    if (!add) __builtin_memset(kept, 0, sizeof *kept);
    const auto reach_of = [&](int64_t chunk) {
        return static_cast<double>(a.bounds[2 * chunk]) * b.bounds[2 * chunk] * UNIT + static_cast<double>(CHUNK);
    };
    double reach = add ? static_cast<double>(largest(*kept)) : 0.0;
    for (int64_t chunk = 0, chunks = chunks_of(k), next; chunk < chunks; chunk = next) {
        // As many chunks as can be added in one way.
        bool are_small = true;
        for (next = chunk; next < chunks && reach + reach_of(next) < static_cast<double>(LIMIT); ++next) {
            const bool is_small = a.bounds[2 * next + 1] * b.bounds[2 * next + 1] < SMALL;
            if (next == chunk) are_small = is_small;
            else if (are_small != is_small) break;
            reach += reach_of(next);
        }
        const bool is_safe = next > chunk;
        if (!is_safe) {
            const double here = static_cast<double>(largest(*kept));
            const bool was_too_cautious = here + reach_of(chunk) < static_cast<double>(LIMIT);
            reach = here;
            if (was_too_cautious) continue;
            ++next;
        }
        const int64_t begin = chunk * CHUNK, end = smaller_of(k, next * CHUNK);
        if (!is_safe) safe(a, b, begin, end, kept), reach = static_cast<double>(largest(*kept));
        else if (are_small) run<true>(a, b, begin, end, kept);
        else run<false>(a, b, begin, end, kept);
    }
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
            const vh found = to_half((vi)load_units(sums->units + i * COLUMNS + j), load_gone(sums->gone + i * COLUMNS + j));
            __builtin_memcpy(whole + j, &found, sizeof found);
        }
        if (columns == COLUMNS) __builtin_memcpy(to, whole, sizeof whole);
        else __builtin_memcpy(to, whole, static_cast<size_t>(columns) * sizeof(half_t));
    }
}

int64_t panel_a_bytes(int64_t k) { return (header_of(k) + k * 2 * ROWS) * static_cast<int64_t>(sizeof(float)); }
int64_t panel_b_bytes(int64_t k) { return (header_of(k) + k * 2 * COLUMNS) * static_cast<int64_t>(sizeof(float)); }
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
