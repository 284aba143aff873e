// Decode for x86: products of one activation vector with weights that llama.cpp repacked for AVX2.
//
// llama.cpp keeps eight rows of such a tensor together: the scales of the eight first, then 64 bytes at a time, eight
// bytes of each row in turn. One byte holds two levels of one row, 16 (Q4_0, IQ4_NL) or 32 (Q4_K) positions apart.
// Levels are taken as unsigned bytes here, which is what the multiply instructions want, and what that adds to a row,
// a constant times the sum of the activations, is subtracted. Integer sums are exact; the float operations after them
// are those of llama.cpp's own AVX2 kernels in the same order: the results agree bit for bit.
//
// Compiled into ggml-cpu in place of the functions of the same name, which stay in the library as NAME_upstream.
// Source of the layouts: ggml/src/ggml-cpu/repack.h, and make_block_*x8 in repack.cpp.

#define GGML_COMMON_DECL_CPP
#define GGML_COMMON_IMPL_CPP  // the table of IQ4_NL
#include "ggml-common.h"

#include "repack.h"

#include <cstring>

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define QWEN_EDGE_AVX2
#include <immintrin.h>
#endif
#if defined(QWEN_EDGE_AVX2) && defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VNNI__)
#define QWEN_EDGE_VNNI_512
#elif defined(QWEN_EDGE_AVX2) && defined(__AVXVNNI__)
#define QWEN_EDGE_VNNI_256
#endif

#define GEMV_ARGUMENTS int n, float * GGML_RESTRICT s, size_t bs, const void * GGML_RESTRICT vx, const void * GGML_RESTRICT vy, int nr, int nc

extern "C" {
void ggml_gemv_q4_0_8x8_q8_0_upstream(GEMV_ARGUMENTS);
void ggml_gemv_q4_K_8x8_q8_K_upstream(GEMV_ARGUMENTS);
void ggml_gemv_iq4_nl_8x8_q8_0_upstream(GEMV_ARGUMENTS);
}

#if defined(QWEN_EDGE_AVX2)
namespace {

// Far enough ahead that a line has come from the last-level cache or memory when it is needed; measured.
constexpr int kPrefetchBytes = 4096;
constexpr int kLineBytes = 64;
// Activations of a row are prepared on the stack; longer rows than any model's go to llama.cpp's kernel.
constexpr int kMaxBlocks = 1024;

// ---- Eight rows at once: 64 bytes, in one register or in two.
//
// Levels   64 unsigned bytes, eight of each row.
// Products sums of level * activation while they are small: with VNNI 32 bits and two to a row, else 16 bits and four.
// Totals   the same in 32 bits, two to a row.

#if defined(QWEN_EDGE_VNNI_512)

using Levels = __m512i;
using Products = __m512i;
using Totals = __m512i;

inline Levels load(const void * p) { return _mm512_loadu_si512(p); }
inline Levels low_levels(Levels v) { return _mm512_and_si512(v, _mm512_set1_epi8(0x0F)); }
inline Levels high_levels(Levels v) { return low_levels(_mm512_srli_epi16(v, 4)); }
inline Levels flip(Levels v, int bits) { return _mm512_xor_si512(v, _mm512_set1_epi8((char) bits)); }
inline Levels look_up(__m128i table, Levels v) { return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), v); }
inline Products no_products() { return _mm512_setzero_si512(); }
inline Totals no_totals() { return _mm512_setzero_si512(); }

inline Products add_products(Products sum, Levels levels, const int8_t * activations) {
    long long eight;
    memcpy(&eight, activations, sizeof(eight));
    return _mm512_dpbusd_epi32(sum, levels, _mm512_set1_epi64(eight));
}

inline Totals widen(Products sum) { return sum; }

// Adds products times the scale of their row: bytes 0 to 7 of `scales`.
inline Totals add_scaled(Totals total, Products sum, __m128i scales) {
    const __m512i spread = _mm512_set_epi64(
        0xFFFFFF07FFFFFF07, 0xFFFFFF06FFFFFF06, 0xFFFFFF05FFFFFF05, 0xFFFFFF04FFFFFF04,
        0xFFFFFF03FFFFFF03, 0xFFFFFF02FFFFFF02, 0xFFFFFF01FFFFFF01, 0xFFFFFF00FFFFFF00);
    // A sum of 16 products of at most 15 * 128 fits 16 bits: one multiply of 16-bit halves does.
    return _mm512_dpwssd_epi32(total, sum, _mm512_shuffle_epi8(_mm512_broadcast_i32x4(scales), spread));
}

// Eight 32-bit integers, in the order of the rows.
inline __m256i row_sums(Totals total) {
    const __m512i both = _mm512_add_epi32(total, _mm512_shuffle_epi32(total, _MM_PERM_CDAB));
    return _mm512_cvtepi64_epi32(both);
}

#else

struct Levels {
    __m256i rows0123, rows4567;
};
using Products = Levels;
using Totals = Levels;

inline Levels load(const void * p) {
    const __m256i * v = (const __m256i *) p;
    return { _mm256_loadu_si256(v), _mm256_loadu_si256(v + 1) };
}

inline __m256i low_levels(__m256i v) { return _mm256_and_si256(v, _mm256_set1_epi8(0x0F)); }
inline Levels low_levels(Levels v) { return { low_levels(v.rows0123), low_levels(v.rows4567) }; }
inline Levels high_levels(Levels v) {
    return { low_levels(_mm256_srli_epi16(v.rows0123, 4)), low_levels(_mm256_srli_epi16(v.rows4567, 4)) };
}
inline Levels flip(Levels v, int bits) {
    const __m256i mask = _mm256_set1_epi8((char) bits);
    return { _mm256_xor_si256(v.rows0123, mask), _mm256_xor_si256(v.rows4567, mask) };
}
inline Products no_products() { return { _mm256_setzero_si256(), _mm256_setzero_si256() }; }
inline Totals no_totals() { return no_products(); }

#if defined(QWEN_EDGE_VNNI_256)
inline Levels look_up(__m128i table, Levels v) {
    const __m256i both = _mm256_broadcastsi128_si256(table);
    return { _mm256_shuffle_epi8(both, v.rows0123), _mm256_shuffle_epi8(both, v.rows4567) };
}
inline __m256i add_products(__m256i sum, __m256i levels, __m256i activations) {
    return _mm256_dpbusd_avx_epi32(sum, levels, activations);
}
inline Totals widen(Products sum) { return sum; }
// A sum of 16 products of at most 15 * 128 fits the lower 16 bits: the upper ones, its sign, are multiplied by 0.
constexpr long long kSpread[4] = {
    (long long) 0xFFFFFF00FFFFFF00, (long long) 0xFFFFFF01FFFFFF01, (long long) 0xFFFFFF02FFFFFF02, (long long) 0xFFFFFF03FFFFFF03};
#else
// Eight products of at most 15 * 128 fit 16 bits: nothing is saturated in the pairs nor in the sum of four pairs.
inline __m256i add_products(__m256i sum, __m256i levels, __m256i activations) {
    return _mm256_add_epi16(sum, _mm256_maddubs_epi16(levels, activations));
}
inline Totals widen(Products sum) {
    const __m256i one = _mm256_set1_epi16(1);
    return { _mm256_madd_epi16(sum.rows0123, one), _mm256_madd_epi16(sum.rows4567, one) };
}
constexpr long long kSpread[4] = {
    (long long) 0xFF00FF00FF00FF00, (long long) 0xFF01FF01FF01FF01, (long long) 0xFF02FF02FF02FF02, (long long) 0xFF03FF03FF03FF03};
#endif

inline Products add_products(Products sum, Levels levels, const int8_t * activations) {
    long long eight;
    memcpy(&eight, activations, sizeof(eight));
    const __m256i all = _mm256_set1_epi64x(eight);
    return { add_products(sum.rows0123, levels.rows0123, all), add_products(sum.rows4567, levels.rows4567, all) };
}

// Adds products times the scale of their row: bytes 0 to 7 of `scales`.
inline Totals add_scaled(Totals total, Products sum, __m128i scales) {
    const __m256i spread = _mm256_set_epi64x(kSpread[3], kSpread[2], kSpread[1], kSpread[0]);
    const __m256i rows0123 = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(scales), spread);
    const __m256i rows4567 =
        _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_srli_si128(scales, 4)), spread);
    return { _mm256_add_epi32(total.rows0123, _mm256_madd_epi16(sum.rows0123, rows0123)),
             _mm256_add_epi32(total.rows4567, _mm256_madd_epi16(sum.rows4567, rows4567)) };
}

// Eight 32-bit integers, in the order of the rows.
inline __m256i row_sums(Totals total) {
    return _mm256_permute4x64_epi64(_mm256_hadd_epi32(total.rows0123, total.rows4567), 0xD8);
}

#endif

// ---- What the formats share.

inline __m256 eight_halves(const ggml_half * p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) p)); }

inline void prefetch(const char * block, int block_bytes) {
    for (int at = 0; at < block_bytes; at += kLineBytes) {
        _mm_prefetch(block + kPrefetchBytes + at, _MM_HINT_T0);
    }
}

inline int32_t sum_of_32(const int8_t * values) {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), _mm256_loadu_si256((const __m256i *) values));
    const __m256i fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(fours), _mm256_extracti128_si256(fours, 1));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xB1)));
}

struct Activations {
    float scale[kMaxBlocks];
    int32_t excess[kMaxBlocks];  // what taking the levels as unsigned adds to each row

    Activations(const block_q8_0 * blocks, int n_blocks, int level_offset) {
        for (int b = 0; b < n_blocks; b++) {
            scale[b] = _cvtsh_ss(blocks[b].d);
            excess[b] = level_offset * sum_of_32(blocks[b].qs);
        }
    }
};

// Blocks of 32 with one scale each: Q4_0 and IQ4_NL. `decode` makes levels of bytes that hold a nibble.
template <typename Block, typename Prepare, typename Decode>
inline void gemv_blocks_of_32(
    int n, float * s, const void * vx, const void * vy, int nc, int level_offset, Prepare prepare, Decode decode) {
    const int n_blocks = n / QK8_0;
    const Block * weights = (const Block *) vx;
    const block_q8_0 * blocks = (const block_q8_0 *) vy;
    const Activations activations(blocks, n_blocks, level_offset);

    for (int row = 0; row < nc; row += 8, weights += n_blocks) {
        __m256 result = _mm256_setzero_ps();
        for (int b = 0; b < n_blocks; b++) {
            prefetch((const char *) (weights + b), sizeof(Block));
            const int8_t * a = blocks[b].qs;
            const Levels first = prepare(load(weights[b].qs));
            const Levels second = prepare(load(weights[b].qs + 64));
            Products sum = add_products(no_products(), decode(low_levels(first)), a);
            sum = add_products(sum, decode(low_levels(second)), a + 8);
            sum = add_products(sum, decode(high_levels(first)), a + 16);
            sum = add_products(sum, decode(high_levels(second)), a + 24);
            const __m256i exact = _mm256_sub_epi32(row_sums(widen(sum)), _mm256_set1_epi32(activations.excess[b]));
            const __m256 scale = _mm256_mul_ps(eight_halves(weights[b].d), _mm256_set1_ps(activations.scale[b]));
            result = _mm256_fmadd_ps(_mm256_cvtepi32_ps(exact), scale, result);
        }
        _mm256_storeu_ps(s + row, result);
    }
}

// The 6-bit scales and minima of two sub-blocks, in 12 bytes each, as bytes: in each half eight scales, eight minima.
// Of a sub-block's three words the first has four scales, the second four minima, the third the lower four bits of the
// other scales and minima, whose upper two are those of the first and second word.
inline __m256i scales_and_minima(const uint8_t * p) {
    const __m256i words = _mm256_loadu_si256((const __m256i *) p);
    const __m256i firsts = _mm256_permutevar8x32_epi32(words, _mm256_setr_epi32(0, 0, 1, 1, 3, 3, 4, 4));
    const __m256i thirds = _mm256_permutevar8x32_epi32(words, _mm256_setr_epi32(2, 2, 2, 2, 5, 5, 5, 5));
    const __m256i six_bits = _mm256_and_si256(
        _mm256_srlv_epi32(firsts, _mm256_setr_epi32(0, 2, 0, 2, 0, 2, 0, 2)),
        _mm256_set1_epi64x(0x303030303F3F3F3F));
    const __m256i four_bits = _mm256_and_si256(
        _mm256_srlv_epi32(thirds, _mm256_setr_epi32(0, 0, 0, 4, 0, 0, 0, 4)),
        _mm256_set1_epi64x(0x0F0F0F0F00000000));
    return _mm256_or_si256(six_bits, four_bits);
}

// Adds minimum * sum of activations for two sub-blocks, to eight 32-bit integers.
inline __m256i add_minima(__m256i total, __m256i scales, const int16_t * sums_of_16) {
    const __m128i minima = _mm_unpackhi_epi8(_mm256_castsi256_si128(scales), _mm256_extracti128_si256(scales, 1));
    const uint16_t first = (uint16_t) (sums_of_16[0] + sums_of_16[1]);
    const uint16_t second = (uint16_t) (sums_of_16[2] + sums_of_16[3]);
    const __m256i sums = _mm256_set1_epi32((int) (first | (uint32_t) second << 16));
    return _mm256_add_epi32(total, _mm256_madd_epi16(_mm256_cvtepu8_epi16(minima), sums));
}

}  // namespace
#endif  // QWEN_EDGE_AVX2

extern "C" void ggml_gemv_q4_0_8x8_q8_0(GEMV_ARGUMENTS) {
#if defined(QWEN_EDGE_AVX2)
    if (nr == 1 && n <= kMaxBlocks * QK8_0) {
        // Levels are repacked as signed nibbles, -8 to 7; with the sign bit flipped they are 0 to 15.
        gemv_blocks_of_32<block_q4_0x8>(
            n, s, vx, vy, nc, 8, [](Levels v) { return flip(v, 0x88); }, [](Levels v) { return v; });
        return;
    }
#endif
    ggml_gemv_q4_0_8x8_q8_0_upstream(n, s, bs, vx, vy, nr, nc);
}

extern "C" void ggml_gemv_iq4_nl_8x8_q8_0(GEMV_ARGUMENTS) {
    // Without VNNI pairs of products of 8-bit levels do not fit 16 bits.
#if defined(QWEN_EDGE_VNNI_512) || defined(QWEN_EDGE_VNNI_256)
    if (nr == 1 && n <= kMaxBlocks * QK8_0) {
        const __m128i signed_levels = _mm_loadu_si128((const __m128i *) kvalues_iq4nl);
        const __m128i levels = _mm_xor_si128(signed_levels, _mm_set1_epi8((char) 0x80));
        gemv_blocks_of_32<block_iq4_nlx8>(
            n, s, vx, vy, nc, 128, [](Levels v) { return v; }, [levels](Levels v) { return look_up(levels, v); });
        return;
    }
#endif
    ggml_gemv_iq4_nl_8x8_q8_0_upstream(n, s, bs, vx, vy, nr, nc);
}

extern "C" void ggml_gemv_q4_K_8x8_q8_K(GEMV_ARGUMENTS) {
#if defined(QWEN_EDGE_AVX2)
    if (nr == 1) {
        const int n_blocks = n / QK_K;
        const block_q4_Kx8 * weights = (const block_q4_Kx8 *) vx;
        const block_q8_K * activations = (const block_q8_K *) vy;
        for (int row = 0; row < nc; row += 8, weights += n_blocks) {
            __m256 result = _mm256_setzero_ps();
            __m256 minima = _mm256_setzero_ps();
            for (int b = 0; b < n_blocks; b++) {
                Totals total = no_totals();
                __m256i total_minima = _mm256_setzero_si256();
                for (int pair = 0; pair < 4; pair++) {
                    const uint8_t * levels = weights[b].qs + 256 * pair;
                    const int8_t * a = activations[b].qs + 64 * pair;
                    prefetch((const char *) levels, 256 + 32);
                    const __m256i scales = scales_and_minima(weights[b].scales + 24 * pair);
                    Products low = no_products();
                    Products high = no_products();
                    for (int part = 0; part < 4; part++) {
                        const Levels v = load(levels + 64 * part);
                        low = add_products(low, low_levels(v), a + 8 * part);
                        high = add_products(high, high_levels(v), a + 8 * part + 32);
                    }
                    total = add_scaled(total, low, _mm256_castsi256_si128(scales));
                    total = add_scaled(total, high, _mm256_extracti128_si256(scales, 1));
                    total_minima = add_minima(total_minima, scales, activations[b].bsums + 4 * pair);
                }
                const __m256 scale = _mm256_set1_ps(activations[b].d);
                result = _mm256_fmadd_ps(
                    _mm256_cvtepi32_ps(row_sums(total)), _mm256_mul_ps(eight_halves(weights[b].d), scale), result);
                minima = _mm256_fmadd_ps(
                    _mm256_cvtepi32_ps(total_minima), _mm256_mul_ps(eight_halves(weights[b].dmin), scale), minima);
            }
            _mm256_storeu_ps(s + row, _mm256_sub_ps(result, minima));
        }
        return;
    }
#endif
    ggml_gemv_q4_K_8x8_q8_K_upstream(n, s, bs, vx, vy, nr, nc);
}
