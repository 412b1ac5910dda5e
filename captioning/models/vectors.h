/* Vectors of floats, from arrays of float32 and of bfloat16. */
#pragma once

#ifdef __AVX512F__
#include <immintrin.h>
#endif
#include <math.h>
#include <stdint.h>
#include <string.h>

#define WIDTH 16 /* floats that are computed together: one register of AVX-512, two of AVX2 */
typedef float vec __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef uint16_t halves __attribute__((vector_size(2 * WIDTH), aligned(2), may_alias));
typedef uint32_t words __attribute__((vector_size(4 * WIDTH)));

/* Up to WIDTH numbers: what is beyond `count` is read as 0, and not written. */
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

/* A bfloat16 is the upper half of a float. */
static inline vec load_bf16(const uint16_t *from, int64_t count)
{
    halves part = {0};
    if (count >= WIDTH)
        part = *(const halves *)from;
    else
        memcpy(&part, from, 2 * (size_t)count);
    return (vec)(__builtin_convertvector(part, words) << 16);
}

static inline void store_bf16(uint16_t *to, vec value, int64_t count)
{
    words bits = (words)value;
    bits = (bits + 0x7fff + (bits >> 16 & 1)) >> 16; /* to the nearest, ties to even */
    halves part = __builtin_convertvector(bits, halves);
    if (count >= WIDTH)
        *(halves *)to = part;
    else
        memcpy(to, &part, 2 * (size_t)count);
}

/* What is no number stays none. */
static inline vec bounded(vec x, float from, float to)
{
    vec low = from - (vec){0}, high = to - (vec){0};
    words below = (words)(x < low), above = (words)(x > high);
    return (vec)(((words)x & ~(below | above)) | ((words)low & below) | ((words)high & above));
}
