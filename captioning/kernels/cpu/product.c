/* Products of a few rows with a weight that is used at every word, in bfloat16.
 *
 * The weight is packed once a step into the order in which its elements are read: panels of PANEL
 * columns, in which the elements of two successive rows alternate, as the instruction for bfloat16
 * takes them. Sums are in float32, each in the same order whatever the number of threads.
 */

#include "vectors.h"

#define VECTORS 4                 /* vectors of columns that are computed together */
#define PANEL (VECTORS * WIDTH)   /* columns of a panel, the same as in products.py */
#define ROWS 6                    /* rows that are computed together: 24 sums in registers */
#define INLINED inline __attribute__((always_inline))
#define UNROLLED _Pragma("GCC unroll 8")

/* sum + the products of two pairs of bfloat16; x has the same pair in each element. */
static INLINED vec add_pairs(vec sum, words x, words y)
{
#ifdef __AVX512BF16__
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)y);
#else
    sum += (vec)(x << 16) * (vec)(y << 16);
    return sum + (vec)(x & 0xffff0000) * (vec)(y & 0xffff0000);
#endif
}

/* packed: the matrix of `depth` (even) x `columns` whose element (k, j) is
 * matrix[k * row_step + j * column_step], with zeros in the columns that fill up the last panel. */
void pack_bf16(uint16_t *packed, const uint16_t *matrix, int64_t depth, int64_t columns,
               int64_t row_step, int64_t column_step)
{
#pragma omp parallel for
    for (int64_t start = 0; start < columns; start += PANEL) {
        int64_t count = columns - start < PANEL ? columns - start : PANEL;
        for (int64_t k = 0; k < depth; k += 2) {
            uint16_t *to = packed + start * depth + k * PANEL;
            const uint16_t *from = matrix + k * row_step + start * column_step;
            for (int64_t j = 0; j < count; j++) {
                to[2 * j] = from[j * column_step];
                to[2 * j + 1] = from[j * column_step + row_step];
            }
            memset(to + 2 * count, 0, 4 * (size_t)(PANEL - count));
        }
    }
}

/* out = start + x . panel, for `rows` rows and `count` columns. */
static INLINED void block(float *out, const uint16_t *x, const uint16_t *panel,
                          const uint16_t *start, int64_t out_step, int64_t x_step,
                          int64_t start_step, int64_t depth, int64_t count, int rows)
{
    vec sums[ROWS][VECTORS] = {0};
    for (int64_t k = 0; k < depth; k += 2) {
        words pairs[VECTORS];
        for (int v = 0; v < VECTORS; v++)
            memcpy(&pairs[v], panel + k * PANEL + 2 * v * WIDTH, sizeof(words));
        UNROLLED
        for (int r = 0; r < rows; r++) {
            uint32_t pair;
            memcpy(&pair, x + r * x_step + k, sizeof pair);
            UNROLLED
            for (int v = 0; v < VECTORS; v++)
                sums[r][v] = add_pairs(sums[r][v], pair - (words){0}, pairs[v]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VECTORS && v * WIDTH < count; v++) {
            int64_t left = count - v * WIDTH;
            if (start)
                sums[r][v] += load_bf16(start + r * start_step + v * WIDTH, left);
            store_fp32(out + r * out_step + v * WIDTH, sums[r][v], left);
        }
}

/* out (rows x columns) = start + x . matrix, for a packed matrix of `depth` rows.
 *
 * x_step and start_step: the strides between rows, in elements; a start_step of 0 adds the same
 * start to every row. start may be NULL. */
void product_bf16(float *out, const uint16_t *x, const uint16_t *packed, const uint16_t *start,
                  int64_t rows, int64_t depth, int64_t columns, int64_t x_step,
                  int64_t start_step)
{
#define BLOCK(count)                                                                               \
    block(out + r * columns + j, x + r * x_step, packed + j * depth,                               \
          start ? start + r * start_step + j : start, columns, x_step, start_step, depth,          \
          columns - j, count)
#pragma omp parallel for
    for (int64_t j = 0; j < columns; j += PANEL) {
        int64_t r = 0;
        for (; r + ROWS <= rows; r += ROWS)
            BLOCK(ROWS);
        switch (rows - r) {
        case 1: BLOCK(1); break;
        case 2: BLOCK(2); break;
        case 3: BLOCK(3); break;
        case 4: BLOCK(4); break;
        case 5: BLOCK(5); break;
        }
    }
}
