#ifndef ELEMENT
/* Operations of the loss and of beam search on the scores (logits) of all words. `scores` is a
 * contiguous array of rows x count, with one row per token and `count` words; it is float32, or
 * bfloat16 in the functions whose name ends in bf16. */

#include "vectors.h"

static inline float number_fp32(float x)
{
    return x;
}

static inline float number_bf16(uint16_t x)
{
    union { uint32_t bits; float number; } whole = {(uint32_t)x << 16};
    return whole.number;
}

static inline vec higher(vec x, vec y)
{
    words above = (words)(x > y);
    return (vec)(((words)x & above) | ((words)y & ~above));
}

/* A bit for each element that is greater than the bound; NaN is not. */
static inline uint32_t above(vec x, float bound)
{
#ifdef __AVX512F__
    return _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(bound), _CMP_GT_OQ);
#endif
    words greater = (words)(x > bound);
    uint32_t bits = 0;
    for (int i = 0; i < WIDTH; i++)
        bits |= (greater[i] & 1) << i;
    return bits;
}

#define ELEMENT float
#define NAMED(name) name##_fp32
#include "vocabulary.c"
#undef ELEMENT
#undef NAMED
#define ELEMENT uint16_t
#define NAMED(name) name##_bf16
#include "vocabulary.c"

#else /* included once for each type of the scores */

static float NAMED(row_log_sum_exp)(const ELEMENT *row, int64_t count)
{
    vec maximum = (vec){0} - INFINITY, sums = {0};
    int64_t w = 0;
    for (; w + WIDTH <= count; w += WIDTH)
        maximum = higher(NAMED(load)(row + w, WIDTH), maximum);
    float highest = -INFINITY;
    for (int i = 0; i < WIDTH; i++)
        highest = maximum[i] > highest ? maximum[i] : highest;
    for (; w < count; w++)
        highest = NAMED(number)(row[w]) > highest ? NAMED(number)(row[w]) : highest;
    for (w = 0; w + WIDTH <= count; w += WIDTH)
        sums += exponential(NAMED(load)(row + w, WIDTH) - highest);
    float sum = total(sums);
    for (; w < count; w++)
        sum += expf(NAMED(number)(row[w]) - highest);
    return highest + logf(sum);
}

/* out (rows): the logarithm of the sum of e^score. */
void NAMED(log_sum_exp)(float *out, const ELEMENT *scores, int64_t rows, int64_t count)
{
#pragma omp parallel for
    for (int64_t r = 0; r < rows; r++)
        out[r] = NAMED(row_log_sum_exp)(scores + r * count, count);
}

/* loss (rows): the logarithm of the sum of e^score minus the expected score under the smoothed
 * target distribution, which has probability `shares[1]` for each word plus `shares[0]` for the
 * target. Where the target is 0, which is padding, loss and normalizer are 0.
 * normalizer (rows): the logarithm of the sum of e^score. */
void NAMED(cross_entropy)(float *loss, float *normalizer, const ELEMENT *scores,
                          const int64_t *targets, const float *shares, int64_t rows, int64_t count)
{
#pragma omp parallel for
    for (int64_t r = 0; r < rows; r++) {
        const ELEMENT *row = scores + r * count;
        vec sums = {0};
        int64_t w = 0;
        loss[r] = normalizer[r] = 0;
        if (!targets[r])
            continue;
        for (; w + WIDTH <= count; w += WIDTH)
            sums += NAMED(load)(row + w, WIDTH);
        float sum = total(sums);
        for (; w < count; w++)
            sum += NAMED(number)(row[w]);
        normalizer[r] = NAMED(row_log_sum_exp)(row, count);
        loss[r] = normalizer[r] - shares[0] * NAMED(number)(row[targets[r]]) - shares[1] * sum;
    }
}

/* out (rows x count): the gradient of `grad_loss[0]` times the sum of the losses, with respect to
 * the scores. */
void NAMED(cross_entropy_backward)(ELEMENT *out, const float *grad_loss, const float *normalizer,
                                    const ELEMENT *scores, const int64_t *targets,
                                    const float *shares, int64_t rows, int64_t count)
{
    const float by = grad_loss[0];
#pragma omp parallel for
    for (int64_t r = 0; r < rows; r++) {
        const ELEMENT *row = scores + r * count;
        ELEMENT *to = out + r * count;
        if (!targets[r]) {
            memset(to, 0, sizeof *to * (size_t)count);
            continue;
        }
        FOR_VECTORS(w, left, count, {
            vec share = exponential(NAMED(load)(row + w, left) - normalizer[r]);
            NAMED(store)(to + w, by * (share - shares[1]), left);
        });
        int64_t w = targets[r];
        vec share = exponential(NAMED(load)(row + w, 1) - normalizer[r]);
        NAMED(store)(to + w, by * (share - shares[1] - shares[0]), 1);
    }
}

/* Sets the scores of the words in `banned` (rows x many) to -inf. */
void NAMED(mask_tokens)(ELEMENT *scores, const int64_t *banned, int64_t rows, int64_t count,
                        int64_t many)
{
    for (int64_t r = 0; r < rows; r++)
        for (int64_t k = 0; k < many; k++)
            NAMED(store)(scores + r * count + banned[r * many + k], (vec){0} - INFINITY, 1);
}

/* out, index (rows x maximum): the highest scores of each row in descending order, and their words;
 * among equal scores, the first word comes first. If a row has fewer scores, the remaining entries
 * are -inf and word 0. */
void NAMED(topk)(float *out, int64_t *index, const ELEMENT *scores, int64_t rows, int64_t count,
                 int64_t maximum)
{
#pragma omp parallel for
    for (int64_t r = 0; r < rows; r++) {
        const ELEMENT *row = scores + r * count;
        float *best = out + r * maximum;
        int64_t *word = index + r * maximum;
        for (int64_t k = 0; k < maximum; k++) {
            best[k] = -INFINITY;
            word[k] = 0;
        }
        FOR_VECTORS(from, left, count, {
            vec here = NAMED(load)(row + from, left);
            uint32_t candidates = above(here, best[maximum - 1]);
            if (left < WIDTH) /* elements that were not loaded are 0 */
                candidates &= ((uint32_t)1 << left) - 1;
            for (; candidates; candidates &= candidates - 1) {
                int64_t w = from + __builtin_ctz(candidates), k = maximum - 1;
                float score = NAMED(number)(row[w]);
                if (!(score > best[k])) /* which may have become higher */
                    continue;
                for (; k > 0 && score > best[k - 1]; k--) {
                    best[k] = best[k - 1];
                    word[k] = word[k - 1];
                }
                best[k] = score;
                word[k] = w;
            }
        });
    }
}

#endif
