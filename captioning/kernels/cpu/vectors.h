/* Vectors of float32, loaded from and stored to arrays of float32 or bfloat16. */
#pragma once

#ifdef __AVX512F__
#include <immintrin.h>
#endif
#include <math.h>
#include <stdint.h>
#include <string.h>

#define WIDTH 16 /* floats in a vector: one register of AVX-512, two of AVX2 */
typedef float vec __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef uint16_t halves __attribute__((vector_size(2 * WIDTH), aligned(2), may_alias));
typedef uint32_t words __attribute__((vector_size(4 * WIDTH)));

/* Loads and stores of up to WIDTH elements. If `count` is smaller, the remaining elements are 0
 * after a load, and are not stored. */
static inline vec load_fp32(const float *from, int64_t count)
{
    if (count >= WIDTH)
        return *(const vec *)from;
    vec part = {0};
    memcpy(&part, from, 4 * (size_t)count);
    return part;
}

static inline void store_fp32(float *to, vec value, int64_t count)
{
    if (count >= WIDTH)
        *(vec *)to = value;
    else
        memcpy(to, &value, 4 * (size_t)count);
}

/* Executes the last argument for k = 0, WIDTH, 2 WIDTH, ... below `size`, with the number of elements
 * from k on, or WIDTH if there are more, as `left`. It is a constant except at the end, so that full
 * vectors need no branch. */
#define FOR_VECTORS(k, left, size, ...)                                                            \
    do {                                                                                           \
        int64_t k = 0;                                                                             \
        for (; k + WIDTH <= (size); k += WIDTH) {                                                  \
            const int64_t left = WIDTH;                                                            \
            __VA_ARGS__                                                                            \
        }                                                                                          \
        if (k < (size)) {                                                                          \
            const int64_t left = (size) - k;                                                       \
            __VA_ARGS__                                                                            \
        }                                                                                          \
    } while (0)

/* A bfloat16 is the upper half of a float. */
static inline vec load_bf16(const uint16_t *from, int64_t count)
{
    halves part = {0};
    if (count >= WIDTH)
        part = *(const halves *)from;
    else
        memcpy(&part, from, 2 * (size_t)count);
#ifdef __AVX512F__ /* compilers generate four instructions for the portable form */
    return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)part), 16);
#else
    return (vec)(__builtin_convertvector(part, words) << 16);
#endif
}

static inline void store_bf16(uint16_t *to, vec value, int64_t count)
{
    words bits = (words)value;
    bits = (bits + 0x7fff + (bits >> 16 & 1)) >> 16; /* round to nearest, ties to even */
    halves part = __builtin_convertvector(bits, halves);
    if (count >= WIDTH)
        *(halves *)to = part;
    else
        memcpy(to, &part, 2 * (size_t)count);
}

/* The sum of all elements. */
static inline float total(vec value)
{
#ifdef __AVX512F__
    return _mm512_reduce_add_ps((__m512)value);
#endif
    for (int half = WIDTH / 2; half; half /= 2)
        for (int i = 0; i < half; i++)
            value[i] += value[i + half];
    return value[0];
}

/* 1 / value, for values of at least 1: accurate to the last bits of float32 in inverse_fp32, and to
 * the precision of bfloat16 in inverse_bf16. */
static inline vec inverse_fp32(vec value)
{
#ifdef __AVX512F__ /* a 14-bit estimate and one Newton step take half the time of a division */
    __m512 guess = _mm512_rcp14_ps((__m512)value);
    return (vec)_mm512_mul_ps(guess, _mm512_fnmadd_ps((__m512)value, guess, _mm512_set1_ps(2)));
#else
    return 1 / value;
#endif
}

static inline vec inverse_bf16(vec value)
{
#ifdef __AVX512F__
    return (vec)_mm512_rcp14_ps((__m512)value);
#else
    return 1 / value;
#endif
}

/* x clamped to from .. to; NaN stays NaN. */
static inline vec bounded(vec x, float from, float to)
{
    vec low = from - (vec){0}, high = to - (vec){0};
    words below = (words)(x < low), above = (words)(x > high);
    return (vec)(((words)x & ~(below | above)) | ((words)low & below) | ((words)high & above));
}

/* e^x to two units in the last place: 2^n e^r with |r| <= log(2) / 2, by Cephes' polynomial. */
static inline vec exponential(vec x)
{
    x = bounded(x, -87, 87);
    vec shifted = x * 1.44269504f + 12582912.0f; /* n in the lowest bits */
    vec n = shifted - 12582912.0f, r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec p = 1.9875691500e-4f * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1;
    return (vec)((words)p + ((words)shifted << 23));
}
