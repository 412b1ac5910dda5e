#ifndef ELEMENT
/* Additive attention of rows (captions) over the locations of their images, and its gradients.
 *
 * The definitions are attention.py's, which computes the same without this file where there is
 * no C compiler. All arrays are row-major and contiguous; all are float32, but exp_keys and
 * grid, which the functions whose name ends in bf16 take in bfloat16:
 *
 *   exp_keys   images x locations x units     e^{2 W_a a_i}
 *   grid       images x locations x channels  a_i
 *   exp_query  rows x units                   e^{2 W_h h}
 *   weight     units                          v
 *   alpha      rows x locations
 *   context    rows x channels
 *
 * Row r belongs to image place[r] / captions. The rows of image b are listed in `space` (images +
 * 1 + rows numbers): order[first[b]] .. order[first[b + 1] - 1]. Images are shared out to
 * threads, and each sum is made by one thread in one order: results do not depend on the number
 * of threads.
 */

#include "vectors.h"

static inline int64_t least(int64_t x, int64_t y)
{
    return x < y ? x : y;
}

#define MOST_ROWS 16 /* rows of an image that are computed together */
#define STREAMS 8    /* locations that are read side by side, each in its order in memory */

/* For a loop of no more rounds than that: what it adds up then stays in registers. */
#define UNROLLED(most) PRAGMA(GCC unroll most)
#define PRAGMA(text) _Pragma(#text)

/* The call with n = count; up to the usual five, n is known to the compiler, and so sums over the
 * locations stay in registers. */
#define INLINED inline __attribute__((always_inline))
#define WITH(number, call) { const int64_t n = number; call; } break
#define FOR_COUNT(count, call)                                                                     \
    switch (count) {                                                                               \
    case 1: WITH(1, call);                                                                         \
    case 2: WITH(2, call);                                                                         \
    case 3: WITH(3, call);                                                                         \
    case 4: WITH(4, call);                                                                         \
    case 5: WITH(5, call);                                                                         \
    default: WITH(count, call);                                                                    \
    }

/* The call for STREAMS locations from `start` on, again and again; at the end for fewer. */
#define FOR_STREAMS(locations, call)                                                               \
    do {                                                                                           \
        int64_t start = 0;                                                                         \
        for (; start + STREAMS <= (locations); start += STREAMS) {                                 \
            const int64_t many = STREAMS;                                                          \
            call;                                                                                  \
        }                                                                                          \
        if (start < (locations)) {                                                                 \
            const int64_t many = (locations) - start;                                              \
            call;                                                                                  \
        }                                                                                          \
    } while (0)

/* 1 / value, for a value of 1 at least; to the last bits, or as exactly as bfloat16 needs it. */
static inline vec inverse_fp32(vec value)
{
#ifdef __AVX512F__ /* a guess of 14 bits and a step of Newton's take half of a division's time */
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

static void softmax(float *row, int64_t length)
{
    float most = row[0], sum = 0;
    for (int64_t i = 1; i < length; i++)
        most = row[i] > most ? row[i] : most;
    vec sums = {0};
    int64_t i = 0;
    for (; i + WIDTH <= length; i += WIDTH) {
        vec powers = exponential(load_fp32(row + i, WIDTH) - most);
        store_fp32(row + i, powers, WIDTH);
        sums += powers;
    }
    for (; i < length; i++)
        sum += row[i] = expf(row[i] - most);
    sum += total(sums);
    for (i = 0; i < length; i++)
        row[i] /= sum;
}

/* List the rows by image: a counting sort. */
static void list_rows(int64_t *space, const int64_t *place, int64_t captions, int64_t rows,
                      int64_t images)
{
    int64_t *first = space, *order = space + images + 1;
    memset(first, 0, sizeof *first * (size_t)(images + 1));
    for (int64_t r = 0; r < rows; r++)
        first[place[r] / captions + 1]++;
    for (int64_t b = 0; b < images; b++)
        first[b + 1] += first[b];
    for (int64_t r = rows; r-- > 0;)
        order[--first[place[r] / captions + 1]] = r;
    for (int64_t b = 0; b < images; b++)
        first[b] = first[b + 1];
    first[images] = rows;
}

/* The gradients of the scores, from those of alpha and of context; in `by_scores`, which holds
 * the gradient of alpha at first. */
static void through_softmax(float *by_scores, const float *alpha, int64_t length)
{
    float mean = 0;
    for (int64_t i = 0; i < length; i++)
        mean += alpha[i] * by_scores[i];
    for (int64_t i = 0; i < length; i++)
        by_scores[i] = alpha[i] * (by_scores[i] - mean);
}

#define ELEMENT float
#define NAMED(name) name##_fp32
#include "attention.c"
#undef ELEMENT
#undef NAMED
#define ELEMENT uint16_t
#define NAMED(name) name##_bf16
#include "attention.c"

#else /* once for each type of exp_keys and grid */

/* v . tanh(x + y) = sum v - 2 sum v s, with s = 1 / (1 + e^{2x} e^{2y}). */
static INLINED void NAMED(scores)(const ELEMENT *keys, const float *const *queries,
                                  float *const *out, int64_t rows, const float *weight,
                                  float sum_of_weight, int64_t locations, int64_t units)
{
    for (int64_t p = 0; p < locations; p++) {
        vec sums[MOST_ROWS];
        UNROLLED(5)
        for (int64_t r = 0; r < rows; r++)
            sums[r] = (vec){0};
        for (int64_t a = 0; a < units; a += WIDTH) {
            int64_t left = units - a;
            vec key = NAMED(load)(keys + p * units + a, left), v = load_fp32(weight + a, left);
            UNROLLED(5)
            for (int64_t r = 0; r < rows; r++)
                sums[r] += v * NAMED(inverse)(1 + key * load_fp32(queries[r] + a, left));
        }
        UNROLLED(5)
        for (int64_t r = 0; r < rows; r++)
            out[r][p] = sum_of_weight - 2 * total(sums[r]);
    }
}

static INLINED void NAMED(mix)(float *const *contexts, const ELEMENT *grid,
                               const float *const *weights, int64_t rows, int64_t start,
                               int64_t many, int64_t channels)
{
    for (int64_t c = 0; c < channels; c += WIDTH) {
        int64_t left = channels - c;
        vec here[STREAMS];
        for (int64_t p = 0; p < many; p++)
            here[p] = NAMED(load)(grid + (start + p) * channels + c, left);
        for (int64_t r = 0; r < rows; r++) {
            vec sum = load_fp32(contexts[r] + c, left);
            UNROLLED(8)
            for (int64_t p = 0; p < many; p++)
                sum += weights[r][start + p] * here[p];
            store_fp32(contexts[r] + c, sum, left);
        }
    }
}

/* alpha = softmax(scores) and context = alpha . grid, for all rows. */
void NAMED(attend)(float *alpha, float *context, const ELEMENT *exp_keys, const ELEMENT *grid,
                   const float *exp_query, const float *weight, const int64_t *place,
                   int64_t *space, int64_t captions, int64_t rows, int64_t images,
                   int64_t locations, int64_t units, int64_t channels)
{
    const int64_t *first = space, *order = space + images + 1;
    list_rows(space, place, captions, rows, images);
    float sum_of_weight = 0;
    for (int64_t a = 0; a < units; a++)
        sum_of_weight += weight[a];
#pragma omp parallel for schedule(dynamic)
    for (int64_t b = 0; b < images; b++)
        for (int64_t from = first[b]; from < first[b + 1]; from += MOST_ROWS) {
            int64_t count = least(first[b + 1] - from, MOST_ROWS);
            const ELEMENT *keys = exp_keys + b * locations * units;
            const ELEMENT *cells = grid + b * locations * channels;
            const float *queries[MOST_ROWS];
            float *weights[MOST_ROWS], *contexts[MOST_ROWS];
            for (int64_t r = 0; r < count; r++) {
                queries[r] = exp_query + order[from + r] * units;
                weights[r] = alpha + order[from + r] * locations;
                contexts[r] = context + order[from + r] * channels;
                memset(contexts[r], 0, sizeof(float) * (size_t)channels);
            }
            FOR_COUNT(count, NAMED(scores)(keys, queries, weights, n, weight, sum_of_weight,
                                           locations, units));
            for (int64_t r = 0; r < count; r++)
                softmax(weights[r], locations);
            FOR_STREAMS(locations, NAMED(mix)(contexts, cells, (const float *const *)weights,
                                              count, start, many, channels));
        }
}

/* Adds to the gradients of alpha what comes by way of the context. */
static INLINED void NAMED(unmix)(float *const *by_scores, const ELEMENT *grid,
                                 const float *const *by_contexts, int64_t rows,
                                 int64_t locations, int64_t channels)
{
    for (int64_t p = 0; p < locations; p++) {
        vec sums[MOST_ROWS] = {0};
        for (int64_t c = 0; c < channels; c += WIDTH) {
            vec here = NAMED(load)(grid + p * channels + c, channels - c);
            for (int64_t r = 0; r < rows; r++)
                sums[r] += here * load_fp32(by_contexts[r] + c, channels - c);
        }
        for (int64_t r = 0; r < rows; r++)
            by_scores[r][p] += total(sums[r]);
    }
}

static INLINED void NAMED(slopes)(float *by_keys, float *const *by_queries, float *by_weight,
                                  const float *const *by_scores, const ELEMENT *exp_keys,
                                  const float *const *queries, int64_t rows, int64_t start,
                                  int64_t many, int64_t units)
{
    for (int64_t a = 0; a < units; a += WIDTH) {
        int64_t left = units - a;
        vec of_key[STREAMS] = {0}, keys[STREAMS], of_weight = load_fp32(by_weight + a, left);
        for (int64_t p = 0; p < many; p++)
            keys[p] = NAMED(load)(exp_keys + (start + p) * units + a, left);
        for (int64_t r = 0; r < rows; r++) {
            vec query = load_fp32(queries[r] + a, left);
            vec of_query = load_fp32(by_queries[r] + a, left);
            for (int64_t p = 0; p < many; p++) {
                vec s = NAMED(inverse)(1 + keys[p] * query);
                vec weighed = by_scores[r][start + p] * s, slope = weighed - weighed * s;
                of_weight += weighed;
                of_query += slope;
                of_key[p] += slope;
            }
            store_fp32(by_queries[r] + a, of_query, left);
        }
        store_fp32(by_weight + a, of_weight, left);
        for (int64_t p = 0; p < many; p++) {
            float *to = by_keys + (start + p) * units + a;
            store_fp32(to, load_fp32(to, left) + of_key[p], left);
        }
    }
}

/* by_scores: the gradient of alpha; becomes that of the scores.
 * by_keys (images x locations x units) is added to and by_query (rows x units) is set; both lack
 * their factor 4 v. by_weight (images x units) is set to sum by_scores . s. */
void NAMED(gradients)(float *by_scores, float *by_keys, float *by_query, float *by_weight,
                      const float *by_context, const float *alpha, const ELEMENT *exp_keys,
                      const ELEMENT *grid, const float *exp_query, const int64_t *place,
                      int64_t *space, int64_t captions, int64_t rows, int64_t images,
                      int64_t locations, int64_t units, int64_t channels)
{
    const int64_t *first = space, *order = space + images + 1;
    list_rows(space, place, captions, rows, images);
#pragma omp parallel for schedule(dynamic)
    for (int64_t b = 0; b < images; b++) {
        memset(by_weight + b * units, 0, 4 * (size_t)units);
        for (int64_t from = first[b]; from < first[b + 1]; from += MOST_ROWS) {
            int64_t count = least(first[b + 1] - from, MOST_ROWS);
            const ELEMENT *keys = exp_keys + b * locations * units;
            const ELEMENT *cells = grid + b * locations * channels;
            const float *queries[MOST_ROWS], *by_contexts[MOST_ROWS];
            float *scores[MOST_ROWS], *by_queries[MOST_ROWS];
            for (int64_t r = 0; r < count; r++) {
                queries[r] = exp_query + order[from + r] * units;
                by_contexts[r] = by_context + order[from + r] * channels;
                scores[r] = by_scores + order[from + r] * locations;
                by_queries[r] = by_query + order[from + r] * units;
                memset(by_queries[r], 0, sizeof(float) * (size_t)units);
            }
            FOR_COUNT(count, NAMED(unmix)(scores, cells, by_contexts, n, locations, channels));
            for (int64_t r = 0; r < count; r++)
                through_softmax(scores[r], alpha + order[from + r] * locations, locations);
            FOR_STREAMS(locations,
                        NAMED(slopes)(by_keys + b * locations * units, by_queries,
                                      by_weight + b * units, (const float *const *)scores,
                                      keys, queries, count, start, many, units));
        }
    }
}

/* out: what was added to by_keys (images x locations x units), times a factor for each unit; by_keys
 * becomes 0. */
void NAMED(sum_of_words)(ELEMENT *out, float *by_keys, const float *factor, int64_t images,
                         int64_t locations, int64_t units)
{
#pragma omp parallel for
    for (int64_t p = 0; p < images * locations; p++)
        for (int64_t a = 0; a < units; a += WIDTH) {
            int64_t left = units - a;
            vec value = load_fp32(by_keys + p * units + a, left) * load_fp32(factor + a, left);
            NAMED(store)(out + p * units + a, value, left);
            store_fp32(by_keys + p * units + a, (vec){0}, left);
        }
}

#endif
