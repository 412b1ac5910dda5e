#ifndef ELEMENT
/* Prepares the grid of an image and a query for attention, each in one pass.
 *
 * The definitions are `standardize` and `exp2x` of the Python modules. Arrays are row-major and
 * contiguous, and float32 except where ELEMENT stands for bfloat16. */

#include "vectors.h"

#define MAX_CHANNELS 4096 /* length of the array of sums that a thread has on its stack */

#define ELEMENT float
#define NAMED(name) name##_fp32
#include "grid.c"
#undef ELEMENT
#undef NAMED
#define ELEMENT uint16_t
#define NAMED(name) name##_bf16
#include "grid.c"

#else /* included once for each type of the results */

/* out: the grid (images x locations x channels), each location minus its mean over the channels and
 * divided by sqrt(variance + epsilon[0]). mean (images x channels): the mean of `out` over the
 * locations of an image. There are at most MAX_CHANNELS channels. */
void NAMED(standardize)(ELEMENT *out, float *mean, const float *grid, const float *epsilon,
                        int64_t images, int64_t locations, int64_t channels)
{
#pragma omp parallel for
    for (int64_t b = 0; b < images; b++) {
        float sums[MAX_CHANNELS] = {0};
        for (int64_t p = b * locations; p < (b + 1) * locations; p++) {
            const float *from = grid + p * channels;
            vec sum = {0}, squares = {0};
            int64_t c = 0;
            for (; c + WIDTH <= channels; c += WIDTH)
                sum += load_fp32(from + c, WIDTH);
            float center = total(sum), spread = 0;
            for (; c < channels; c++)
                center += from[c];
            center /= (float)channels;
            for (c = 0; c + WIDTH <= channels; c += WIDTH) {
                vec apart = load_fp32(from + c, WIDTH) - center;
                squares += apart * apart;
            }
            spread = total(squares);
            for (; c < channels; c++)
                spread += (from[c] - center) * (from[c] - center);
            const float scale = 1 / sqrtf(spread / (float)channels + epsilon[0]);
            FOR_VECTORS(k, left, channels, {
                vec value = (load_fp32(from + k, left) - center) * scale;
                store_fp32(sums + k, load_fp32(sums + k, left) + value, left);
                NAMED(store)(out + p * channels + k, value, left);
            });
        }
        for (int64_t c = 0; c < channels; c += WIDTH)
            store_fp32(mean + b * channels + c,
                       load_fp32(sums + c, channels - c) / (float)locations, channels - c);
    }
}

/* out: e^{2x} of x clamped to -limit[0] .. limit[0], in float32 if `exactly`, else in the type of
 * x. `step` is the stride between the rows of x, in elements. */
void NAMED(exp2x)(void *out, const ELEMENT *x, const float *limit, int64_t rows, int64_t size,
                      int64_t step, int64_t exactly)
{
#pragma omp parallel for
    for (int64_t r = 0; r < rows; r++)
        FOR_VECTORS(k, left, size, {
            vec value = NAMED(load)(x + r * step + k, left);
            value = exponential(2 * bounded(value, -limit[0], limit[0]));
            if (exactly)
                store_fp32((float *)out + r * size + k, value, left);
            else
                NAMED(store)((ELEMENT *)out + r * size + k, value, left);
        });
}

#endif
