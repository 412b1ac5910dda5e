#ifndef ELEMENT
/* Additive attention of rows (captions) over the locations of their images, and its gradients.
 *
 * The definition is `additive_attention` of reference.py. All arrays are row-major and contiguous.
 * They are float32, except exp_keys and grid, which are bfloat16 in the functions whose name ends
 * in bf16:
 *
 *   exp_keys   images x locations x units     e^{2 W_a a_i}
 *   grid       images x locations x channels  a_i
 *   exp_query  rows x units                   e^{2 W_h h}
 *   weight     units                          v
 *   alpha      rows x locations
 *   context    rows x channels
 *
 * Row r belongs to image row_index[r] / captions. `space` (images + 1 + rows integers) is scratch
 * memory for the arrays `first` and `order`: the rows of image b are order[first[b]] ..
 * order[first[b + 1] - 1]. The images are distributed over the threads, and one thread computes
 * each sum in a fixed order, so that results do not depend on the number of threads.
 */

#include "vectors.h"

static inline int64_t smaller(int64_t x, int64_t y)
{
    return x < y ? x : y;
}

#define MAX_ROWS 5 /* rows of an image that are computed together: the usual number of captions */
#define VECTORS 4  /* vectors of channels that are computed together; their sums are in registers */
#define STREAMS 8  /* locations that are read in parallel, each sequentially in memory */
#define LINE 64    /* bytes of a line of the cache */

/* Unrolls a loop of at most `rounds` iterations, so that its sums stay in registers. */
#define UNROLLED(rounds) PRAGMA(GCC unroll rounds)
#define PRAGMA(text) _Pragma(#text)

/* Executes `call` with n = count as a compile-time constant, so that the sums of all rows stay in
 * registers. */
#define INLINED inline __attribute__((always_inline))
#define WITH(number, call) { const int64_t n = number; call; } break
#define FOR_COUNT(count, call)                                                                     \
    switch (count) {                                                                               \
    case 1: WITH(1, call);                                                                         \
    case 2: WITH(2, call);                                                                         \
    case 3: WITH(3, call);                                                                         \
    case 4: WITH(4, call);                                                                         \
    case 5: WITH(5, call);                                                                         \
    }

/* Executes `call` for blocks of `many` locations from `start` on: STREAMS at a time, and then the
 * remaining ones. */
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

static void softmax(float *row, int64_t length)
{
    float maximum = row[0], sum = 0;
    for (int64_t i = 1; i < length; i++)
        maximum = row[i] > maximum ? row[i] : maximum;
    vec sums = {0};
    int64_t i = 0;
    for (; i + WIDTH <= length; i += WIDTH) {
        vec powers = exponential(load_fp32(row + i, WIDTH) - maximum);
        store_fp32(row + i, powers, WIDTH);
        sums += powers;
    }
    for (; i < length; i++)
        sum += row[i] = expf(row[i] - maximum);
    sum += total(sums);
    for (i = 0; i < length; i++)
        row[i] /= sum;
}

/* Sorts the rows by image with a counting sort, into the arrays `first` and `order` of `space`. */
static void list_rows(int64_t *space, const int64_t *row_index, int64_t captions, int64_t rows,
                      int64_t images)
{
    int64_t *first = space, *order = space + images + 1;
    memset(first, 0, sizeof *first * (size_t)(images + 1));
    for (int64_t r = 0; r < rows; r++)
        first[row_index[r] / captions + 1]++;
    for (int64_t b = 0; b < images; b++)
        first[b + 1] += first[b];
    for (int64_t r = rows; r-- > 0;)
        order[--first[row_index[r] / captions + 1]] = r;
    for (int64_t b = 0; b < images; b++)
        first[b] = first[b + 1];
    first[images] = rows;
}

/* The backward pass of the softmax, in place: `grad_scores` contains the gradient with respect to
 * alpha on entry, and with respect to the scores on return. */
static void softmax_backward(float *grad_scores, const float *alpha, int64_t length)
{
    float mean = 0;
    for (int64_t i = 0; i < length; i++)
        mean += alpha[i] * grad_scores[i];
    for (int64_t i = 0; i < length; i++)
        grad_scores[i] = alpha[i] * (grad_scores[i] - mean);
}

#define ELEMENT float
#define NAMED(name) name##_fp32
#include "attention.c"
#undef ELEMENT
#undef NAMED
#define ELEMENT uint16_t
#define NAMED(name) name##_bf16
#include "attention.c"

#else /* included once for each type of exp_keys and grid */

/* out: the score of each location for each row,
 * v . tanh(x + y) = sum v - 2 sum v s, with s = 1 / (1 + e^{2x} e^{2y}). */
static INLINED void NAMED(scores)(const ELEMENT *keys, const float *const *queries,
                                  float *const *out, int64_t rows, const float *weight,
                                  float sum_of_weight, int64_t locations, int64_t units,
                                  const ELEMENT *grid, int64_t channels)
{
    for (int64_t p = 0; p < locations; p++) {
        for (int64_t c = 0; c < channels; c += LINE / (int64_t)sizeof(ELEMENT))
            __builtin_prefetch(grid + p * channels + c, 0, 2); /* `mix` reads it next */
        vec sums[MAX_ROWS];
        UNROLLED(5)
        for (int64_t r = 0; r < rows; r++)
            sums[r] = (vec){0};
        FOR_VECTORS(a, left, units, {
            vec key = NAMED(load)(keys + p * units + a, left), v = load_fp32(weight + a, left);
            UNROLLED(5)
            for (int64_t r = 0; r < rows; r++)
                sums[r] += v * NAMED(inverse)(1 + key * load_fp32(queries[r] + a, left));
        });
        UNROLLED(5)
        for (int64_t r = 0; r < rows; r++)
            out[r][p] = sum_of_weight - 2 * total(sums[r]);
    }
}

/* The context of each row, from channel c on: `vectors` vectors, of which the last has `left`
 * channels. */
static INLINED void NAMED(mix_channels)(float *const *contexts, const ELEMENT *grid,
                                        const float *const *weights, int64_t rows,
                                        int64_t locations, int64_t channels, int64_t c,
                                        int64_t vectors, int64_t left)
{
    vec sums[MAX_ROWS][VECTORS] = {0};
    for (int64_t p = 0; p < locations; p++) {
        vec here[VECTORS];
        for (int64_t v = 0; v < vectors; v++)
            here[v] = NAMED(load)(grid + p * channels + c + v * WIDTH, left);
        UNROLLED(5)
        for (int64_t r = 0; r < rows; r++)
            for (int64_t v = 0; v < vectors; v++)
                sums[r][v] += weights[r][p] * here[v];
    }
    for (int64_t r = 0; r < rows; r++)
        for (int64_t v = 0; v < vectors; v++)
            store_fp32(contexts[r] + c + v * WIDTH, sums[r][v], left);
}

/* The context of each row: the sum of the weighted locations. */
static INLINED void NAMED(mix)(float *const *contexts, const ELEMENT *grid,
                               const float *const *weights, int64_t rows, int64_t locations,
                               int64_t channels)
{
    int64_t c = 0;
    for (; c + VECTORS * WIDTH <= channels; c += VECTORS * WIDTH)
        NAMED(mix_channels)(contexts, grid, weights, rows, locations, channels, c, VECTORS, WIDTH);
    for (; c < channels; c += WIDTH)
        NAMED(mix_channels)(contexts, grid, weights, rows, locations, channels, c, 1, channels - c);
}

/* alpha = softmax(scores) and context = alpha . grid, for all rows. */
void NAMED(attend)(float *alpha, float *context, const ELEMENT *exp_keys, const ELEMENT *grid,
                   const float *exp_query, const float *weight, const int64_t *row_index,
                   int64_t *space, int64_t captions, int64_t rows, int64_t images,
                   int64_t locations, int64_t units, int64_t channels)
{
    const int64_t *first = space, *order = space + images + 1;
    list_rows(space, row_index, captions, rows, images);
    float sum_of_weight = 0;
    for (int64_t a = 0; a < units; a++)
        sum_of_weight += weight[a];
#pragma omp parallel for schedule(dynamic)
    for (int64_t b = 0; b < images; b++)
        for (int64_t from = first[b]; from < first[b + 1]; from += MAX_ROWS) {
            int64_t count = smaller(first[b + 1] - from, MAX_ROWS);
            const ELEMENT *keys = exp_keys + b * locations * units;
            const ELEMENT *cells = grid + b * locations * channels;
            const float *queries[MAX_ROWS];
            float *weights[MAX_ROWS], *contexts[MAX_ROWS];
            for (int64_t r = 0; r < count; r++) {
                queries[r] = exp_query + order[from + r] * units;
                weights[r] = alpha + order[from + r] * locations;
                contexts[r] = context + order[from + r] * channels;
            }
            FOR_COUNT(count, NAMED(scores)(keys, queries, weights, n, weight, sum_of_weight,
                                           locations, units, cells, channels));
            for (int64_t r = 0; r < count; r++)
                softmax(weights[r], locations);
            FOR_COUNT(count, NAMED(mix)(contexts, cells, (const float *const *)weights, n,
                                        locations, channels));
        }
}

/* Adds the part of the gradient with respect to alpha that comes through the context. */
static INLINED void NAMED(context_backward)(float *const *grad_scores, const ELEMENT *grid,
                                 const float *const *grad_contexts, int64_t rows,
                                 int64_t locations, int64_t channels)
{
    for (int64_t p = 0; p < locations; p++) {
        vec sums[MAX_ROWS] = {0};
        FOR_VECTORS(c, left, channels, {
            vec here = NAMED(load)(grid + p * channels + c, left);
            UNROLLED(5)
            for (int64_t r = 0; r < rows; r++)
                sums[r] += here * load_fp32(grad_contexts[r] + c, left);
        });
        for (int64_t r = 0; r < rows; r++)
            grad_scores[r][p] += total(sums[r]);
    }
}

/* Adds the gradients that pass through the tanh at `many` locations from `start` on, with respect
 * to keys, queries and v, from the gradients with respect to the scores. */
static INLINED void NAMED(tanh_backward)(float *grad_keys, float *const *grad_queries,
                                         float *grad_weight, const float *const *grad_scores,
                                         const ELEMENT *exp_keys, const float *const *queries,
                                         const float *weight, int64_t rows, int64_t start,
                                         int64_t many, int64_t units)
{
    FOR_VECTORS(a, left, units, {
        vec grad_key[STREAMS] = {0}, keys[STREAMS], sum_weight = load_fp32(grad_weight + a, left);
        vec scale = 4 * load_fp32(weight + a, left);
        for (int64_t p = 0; p < many; p++)
            keys[p] = NAMED(load)(exp_keys + (start + p) * units + a, left);
        for (int64_t r = 0; r < rows; r++) {
            vec query = load_fp32(queries[r] + a, left);
            vec sum_query = load_fp32(grad_queries[r] + a, left);
            for (int64_t p = 0; p < many; p++) {
                vec s = NAMED(inverse)(1 + keys[p] * query);
                vec weighed = grad_scores[r][start + p] * s, slope = weighed - weighed * s;
                sum_weight -= 2 * weighed;
                sum_query += slope * scale;
                grad_key[p] += slope;
            }
            store_fp32(grad_queries[r] + a, sum_query, left);
        }
        store_fp32(grad_weight + a, sum_weight, left);
        for (int64_t p = 0; p < many; p++) {
            float *to = grad_keys + (start + p) * units + a;
            store_fp32(to, load_fp32(to, left) + scale * grad_key[p], left);
        }
    });
}

/* The backward pass of `attend`.
 *
 *   grad_scores  rows x locations           the gradient with respect to alpha on entry, and with
 *                                           respect to the scores on return
 *   grad_keys    images x locations x units  the gradient with respect to the keys is added to it
 *   grad_query   rows x units               the gradient with respect to the query
 *   grad_weight  images x units             the gradient with respect to v, for each image
 *
 * The derivative of tanh(x + y) is 4 s (1 - s). The gradients with respect to the scores of a row
 * sum to 0, so that grad_weight = sum grad_scores . tanh = -2 sum grad_scores . s. */
void NAMED(attend_backward)(float *grad_scores, float *grad_keys, float *grad_query,
                            float *grad_weight, const float *grad_context, const float *alpha,
                            const ELEMENT *exp_keys, const ELEMENT *grid, const float *exp_query,
                            const float *weight, const int64_t *row_index, int64_t *space,
                            int64_t captions, int64_t rows, int64_t images, int64_t locations,
                            int64_t units, int64_t channels)
{
    const int64_t *first = space, *order = space + images + 1;
    list_rows(space, row_index, captions, rows, images);
#pragma omp parallel for schedule(dynamic)
    for (int64_t b = 0; b < images; b++) {
        memset(grad_weight + b * units, 0, 4 * (size_t)units);
        for (int64_t from = first[b]; from < first[b + 1]; from += MAX_ROWS) {
            int64_t count = smaller(first[b + 1] - from, MAX_ROWS);
            const ELEMENT *keys = exp_keys + b * locations * units;
            const ELEMENT *cells = grid + b * locations * channels;
            const float *queries[MAX_ROWS], *grad_contexts[MAX_ROWS];
            float *scores[MAX_ROWS], *grad_queries[MAX_ROWS];
            for (int64_t r = 0; r < count; r++) {
                queries[r] = exp_query + order[from + r] * units;
                grad_contexts[r] = grad_context + order[from + r] * channels;
                scores[r] = grad_scores + order[from + r] * locations;
                grad_queries[r] = grad_query + order[from + r] * units;
                memset(grad_queries[r], 0, sizeof(float) * (size_t)units);
            }
            FOR_COUNT(count, NAMED(context_backward)(scores, cells, grad_contexts, n, locations,
                                                     channels));
            for (int64_t r = 0; r < count; r++)
                softmax_backward(scores[r], alpha + order[from + r] * locations, locations);
            FOR_STREAMS(locations,
                        NAMED(tanh_backward)(grad_keys + b * locations * units, grad_queries,
                                             grad_weight + b * units,
                                             (const float *const *)scores, keys, queries, weight,
                                             count, start, many, units));
        }
    }
}

#endif
