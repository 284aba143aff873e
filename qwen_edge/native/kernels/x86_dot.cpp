// Decode for x86: dot products of one row of weights with one activation vector, for types that llama.cpp does not
// repack on x86. In Qwen's files that is the tied head (Q6_K or Q8_0), and every matrix whose rows are not a multiple of
// 256 in a K file (Q5_0, Q8_0 in the 0.5B).
//
// llama.cpp's kernels convert two half-precision scales for each block of 32, one at a time, and that is most of their
// instructions. Here the scales of eight blocks are converted together. Q6_K works on 512 bits.
// Integer sums are exact, and the float operations after them are those of llama.cpp's own AVX2 kernels in the same
// order: the results agree bit for bit.
//
// Compiled into ggml-cpu in place of the functions of the same name, which stay in the library as NAME_upstream.
// Source of the layouts: ggml/src/ggml-common.h, and dequantize_row_* in ggml/src/ggml-quants.c.

#include "quants.h"

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

#define DOT_ARGUMENTS int n, float * GGML_RESTRICT s, size_t bs, const void * GGML_RESTRICT vx, size_t bx, const void * GGML_RESTRICT vy, size_t by, int nrc

extern "C" {
void ggml_vec_dot_q5_0_q8_0_upstream(DOT_ARGUMENTS);
void ggml_vec_dot_q6_K_q8_K_upstream(DOT_ARGUMENTS);
void ggml_vec_dot_q8_0_q8_0_upstream(DOT_ARGUMENTS);
}

#if defined(QWEN_EDGE_AVX2)
namespace {

// Far enough ahead that a line has come from the last-level cache or memory when it is needed; measured.
constexpr int kPrefetchBytes = 4096;
constexpr int kLineBytes = 64;
constexpr int kTogether = 8;

inline void prefetch(const void * at, int bytes) {
    for (int i = 0; i < bytes; i += kLineBytes) {
        _mm_prefetch((const char *) at + kPrefetchBytes + i, _MM_HINT_T0);
    }
}

inline float sum(__m256 v) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

// Eight sums of four products each; `x` is -127 to 127 (or up to 128 without a sign).
inline __m256 products(__m256i x, __m256i y) {
    const __m256i size = _mm256_sign_epi8(x, x);
    const __m256i signed_y = _mm256_sign_epi8(y, x);
#if defined(QWEN_EDGE_VNNI_512)
    return _mm256_cvtepi32_ps(_mm256_dpbusd_epi32(_mm256_setzero_si256(), size, signed_y));
#elif defined(QWEN_EDGE_VNNI_256)
    return _mm256_cvtepi32_ps(_mm256_dpbusd_avx_epi32(_mm256_setzero_si256(), size, signed_y));
#else
    const __m256i pairs = _mm256_maddubs_epi16(size, signed_y);
    return _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#endif
}

inline __m256i levels(const block_q8_0 & x) { return _mm256_loadu_si256((const __m256i *) x.qs); }

// Bit i of `qh` is the fifth bit of level i: where it is not set, 16 is subtracted.
inline __m256i levels(const block_q5_0 & x) {
    const __m128i bytes = _mm_loadu_si128((const __m128i *) x.qs);
    const __m256i nibbles = _mm256_and_si256(
        _mm256_inserti128_si256(_mm256_castsi128_si256(bytes), _mm_srli_epi16(bytes, 4), 1), _mm256_set1_epi8(0x0F));
    uint32_t bits;
    memcpy(&bits, x.qh, sizeof(bits));
#if defined(QWEN_EDGE_VNNI_512)
    return _mm256_mask_sub_epi8(nibbles, (__mmask32) ~bits, nibbles, _mm256_set1_epi8(16));
#else
    const __m256i byte_of_each = _mm256_shuffle_epi8(
        _mm256_set1_epi32((int) bits),
        _mm256_set_epi64x(0x0303030303030303, 0x0202020202020202, 0x0101010101010101, 0));
    const __m256i bit_of_each = _mm256_set1_epi64x((long long) 0x8040201008040201);
    const __m256i is_unset =
        _mm256_cmpeq_epi8(_mm256_and_si256(byte_of_each, bit_of_each), _mm256_setzero_si256());
    // 0xF0 | nibble is nibble - 16.
    return _mm256_or_si256(nibbles, _mm256_and_si256(is_unset, _mm256_set1_epi8((char) 0xF0)));
#endif
}

template <typename Block>
inline __m256 eight_scales(const Block * x) {
    return _mm256_cvtph_ps(_mm_setr_epi16(
        (short) x[0].d, (short) x[1].d, (short) x[2].d, (short) x[3].d,
        (short) x[4].d, (short) x[5].d, (short) x[6].d, (short) x[7].d));
}

template <typename Block>
inline float dot_blocks_of_32(int n, const void * vx, const void * vy) {
    const int n_blocks = n / QK8_0;
    const Block * x = (const Block *) vx;
    const block_q8_0 * y = (const block_q8_0 *) vy;
    __m256 result = _mm256_setzero_ps();
    int b = 0;
    for (; b + kTogether <= n_blocks; b += kTogether) {
        prefetch(x + b, kTogether * (int) sizeof(Block));
        alignas(32) float scale[kTogether];
        _mm256_store_ps(scale, _mm256_mul_ps(eight_scales(x + b), eight_scales(y + b)));
        for (int i = 0; i < kTogether; i++) {
            result = _mm256_fmadd_ps(_mm256_set1_ps(scale[i]), products(levels(x[b + i]), levels(y[b + i])), result);
        }
    }
    for (; b < n_blocks; b++) {
        const __m256 scale = _mm256_set1_ps(_cvtsh_ss(x[b].d) * _cvtsh_ss(y[b].d));
        result = _mm256_fmadd_ps(scale, products(levels(x[b]), levels(y[b])), result);
    }
    return sum(result);
}

}  // namespace
#endif  // QWEN_EDGE_AVX2

extern "C" void ggml_vec_dot_q8_0_q8_0(DOT_ARGUMENTS) {
#if defined(QWEN_EDGE_AVX2)
    if (nrc == 1) {
        *s = dot_blocks_of_32<block_q8_0>(n, vx, vy);
        return;
    }
#endif
    ggml_vec_dot_q8_0_q8_0_upstream(n, s, bs, vx, bx, vy, by, nrc);
}

extern "C" void ggml_vec_dot_q5_0_q8_0(DOT_ARGUMENTS) {
#if defined(QWEN_EDGE_AVX2)
    if (nrc == 1) {
        *s = dot_blocks_of_32<block_q5_0>(n, vx, vy);
        return;
    }
#endif
    ggml_vec_dot_q5_0_q8_0_upstream(n, s, bs, vx, bx, vy, by, nrc);
}

extern "C" void ggml_vec_dot_q6_K_q8_K(DOT_ARGUMENTS) {
    // On 256 bits VNNI saves nothing: llama.cpp's kernel multiplies by the scales in the step that widens to 32 bits.
#if defined(QWEN_EDGE_VNNI_512)
    if (nrc == 1) {
        const block_q6_K * x = (const block_q6_K *) vx;
        const block_q8_K * y = (const block_q8_K *) vy;
        const __m512i fifteen = _mm512_set1_epi8(0x0F);
        const __m512i upper_bits = _mm512_set1_epi8(0x30);
        // The first 32 levels of 64 have their upper bits two places below those of the others.
        const __m512i left = _mm512_inserti64x4(_mm512_set1_epi32(4), _mm256_set1_epi32(2), 1);
        const __m512i right = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi32(2), 1);
        const __m512i four_each = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
        __m256 result = _mm256_setzero_ps();
        for (int b = 0; b < n / QK_K; b++) {
            prefetch(x + b, sizeof(block_q6_K));
            const __m128i scales = _mm_loadu_si128((const __m128i *) x[b].scales);
            // The lower half of each 32-bit lane only: the upper one meets the sign of the products.
            const __m512i scales_32 = _mm512_and_si512(_mm512_cvtepi8_epi32(scales), _mm512_set1_epi32(0xFFFF));
            const __m256i sums_of_16 = _mm256_loadu_si256((const __m256i *) y[b].bsums);
            // Levels are stored with 32 added to each.
            const __m256i excess = _mm256_slli_epi32(_mm256_madd_epi16(sums_of_16, _mm256_cvtepi8_epi16(scales)), 5);
            __m512i total = _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_zextsi256_si512(excess));
            for (int half = 0; half < 2; half++) {
                const __m512i lower = _mm512_loadu_si512(x[b].ql + 64 * half);
                const __m512i upper = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *) (x[b].qh + 32 * half)));
                const __m512i first = _mm512_or_si512(
                    _mm512_and_si512(lower, fifteen), _mm512_and_si512(_mm512_sllv_epi32(upper, left), upper_bits));
                const __m512i second = _mm512_or_si512(
                    _mm512_and_si512(_mm512_srli_epi16(lower, 4), fifteen),
                    _mm512_and_si512(_mm512_srlv_epi32(upper, right), upper_bits));
                const int8_t * a = y[b].qs + 128 * half;
                const __m512i zero = _mm512_setzero_si512();
                // Sums of four products of at most 63 * 128: they fit 16 bits.
                const __m512i p = _mm512_dpbusd_epi32(zero, first, _mm512_loadu_si512(a));
                const __m512i q = _mm512_dpbusd_epi32(zero, second, _mm512_loadu_si512(a + 64));
                const __m512i which = _mm512_add_epi32(four_each, _mm512_set1_epi32(8 * half));
                total = _mm512_dpwssd_epi32(total, p, _mm512_permutexvar_epi32(which, scales_32));
                total = _mm512_dpwssd_epi32(
                    total, q, _mm512_permutexvar_epi32(_mm512_add_epi32(which, _mm512_set1_epi32(4)), scales_32));
            }
            const __m256i sums = _mm256_add_epi32(_mm512_castsi512_si256(total), _mm512_extracti64x4_epi64(total, 1));
            const __m256 scale = _mm256_set1_ps(_cvtsh_ss(x[b].d) * y[b].d);
            result = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(sums), result);
        }
        *s = sum(result);
        return;
    }
#endif
    ggml_vec_dot_q6_K_q8_K_upstream(n, s, bs, vx, bx, vy, by, nrc);
}
