#ifndef ELEMENT
/* The pointwise part of an LSTM cell for rows (captions), and its gradients.
 *
 * The definition is `lstm_cell` of reference.py. With the sum of the addends in the order input,
 * forget, cell, output:
 *
 *   cell = sigmoid(f) previous + sigmoid(i) tanh(g)      hidden = sigmoid(o) tanh(cell)
 *
 * The addends are 1 to 3 matrices of rows x 4 size, each with its own stride between rows. They are
 * float32, or bfloat16 in the functions whose name ends in bf16. All other arrays are contiguous
 * float32 of rows x size.
 */

#include "vectors.h"

static inline vec sigmoid(vec x)
{
    return inverse_fp32(1 + exponential(-x));
}

static inline vec hyperbolic_tangent(vec x)
{
    return 1 - 2 * inverse_fp32(1 + exponential(2 * x));
}

#define MAX_ADDENDS 3

#define ELEMENT float
#define NAMED(name) name##_fp32
#include "cell.c"
#undef ELEMENT
#undef NAMED
#define ELEMENT uint16_t
#define NAMED(name) name##_bf16
#include "cell.c"

#else /* included once for each type of the addends */

/* active (rows x 4 size) or NULL: the four gates after their activations, for the backward pass.
 * first_step, second_step, third_step: the strides between the rows of the addends, in elements. */
void NAMED(cell)(float *hidden, float *cell, float *active, const float *previous,
                 const ELEMENT *first, const ELEMENT *second, const ELEMENT *third,
                 int64_t first_step, int64_t second_step, int64_t third_step, int64_t rows,
                 int64_t size)
{
    const ELEMENT *addends[MAX_ADDENDS] = {first, second, third};
    const int64_t steps[MAX_ADDENDS] = {first_step, second_step, third_step};
#pragma omp parallel for
    for (int64_t r = 0; r < rows; r++)
        FOR_VECTORS(k, left, size, {
            vec gates[4];
            for (int gate = 0; gate < 4; gate++) {
                gates[gate] = NAMED(load)(first + r * first_step + gate * size + k, left);
                for (int a = 1; a < MAX_ADDENDS && addends[a]; a++)
                    gates[gate] += NAMED(load)(addends[a] + r * steps[a] + gate * size + k, left);
                gates[gate] = gate == 2 ? hyperbolic_tangent(gates[gate]) : sigmoid(gates[gate]);
                if (active)
                    store_fp32(active + (4 * r + gate) * size + k, gates[gate], left);
            }
            vec now = gates[1] * load_fp32(previous + r * size + k, left) + gates[0] * gates[2];
            store_fp32(cell + r * size + k, now, left);
            store_fp32(hidden + r * size + k, gates[3] * hyperbolic_tangent(now), left);
        });
}

/* grad_gates (rows x 4 size): the gradient with respect to each addend; all have the same one. */
void NAMED(cell_backward)(ELEMENT *grad_gates, float *grad_previous, const float *grad_hidden,
                           const float *grad_cell, const float *active, const float *previous,
                           const float *cell, int64_t rows, int64_t size)
{
#pragma omp parallel for
    for (int64_t r = 0; r < rows; r++)
        FOR_VECTORS(k, left, size, {
            const int64_t at = r * size + k;
            vec gates[4];
            for (int gate = 0; gate < 4; gate++)
                gates[gate] = load_fp32(active + (4 * r + gate) * size + k, left);
            vec i = gates[0], f = gates[1], g = gates[2], o = gates[3];
            vec grad_h = load_fp32(grad_hidden + at, left);
            vec seen = hyperbolic_tangent(load_fp32(cell + at, left));
            vec grad_c = load_fp32(grad_cell + at, left) + grad_h * o * (1 - seen * seen);
            vec by[4] = {
                grad_c * g * i * (1 - i),
                grad_c * load_fp32(previous + at, left) * f * (1 - f),
                grad_c * i * (1 - g * g),
                grad_h * seen * o * (1 - o),
            };
            store_fp32(grad_previous + at, grad_c * f, left);
            for (int gate = 0; gate < 4; gate++)
                NAMED(store)(grad_gates + (4 * r + gate) * size + k, by[gate], left);
        });
}

#endif
