"""Attention and the LSTM cell in Triton.

Definitions, names and shapes are the same as in ``attention.c`` and ``cell.c``.
:mod:`captioning.kernels.triton.launch` launches the functions.
"""

import triton
import triton.language as tl


@triton.jit
def score(
    scores, exp_keys, exp_query, weight, row_index,
    captions, locations, units,
    BLOCK_LOCATIONS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute attention scores; one program for each row and block of locations."""
    row = tl.program_id(0)
    image = tl.load(row_index + row) // captions
    p = tl.program_id(1) * BLOCK_LOCATIONS + tl.arange(0, BLOCK_LOCATIONS)
    there = p < locations
    keys = exp_keys + (image * locations + p) * units
    half = tl.zeros([BLOCK_LOCATIONS], tl.float32)  # (sum v - v . tanh) / 2
    total = 0.0
    for start in range(0, units, BLOCK):
        a = start + tl.arange(0, BLOCK)
        inside = a < units
        q = tl.load(exp_query + row * units + a, mask=inside, other=0.0)
        v = tl.load(weight + a, mask=inside, other=0.0)
        k = tl.load(keys[:, None] + a, mask=there[:, None] & inside, other=0.0).to(tl.float32)
        half += tl.sum(v / (1.0 + k * q), 1)
        total += tl.sum(v, 0)
    tl.store(scores + row * locations + p, total - 2.0 * half, mask=there)


@triton.jit
def mix(
    alpha, context, scores, grid, row_index,
    captions, locations, channels,
    LOCATIONS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute the softmax and the context; one program for each row and block of channels."""
    row = tl.program_id(0)
    image = tl.load(row_index + row) // captions
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = c < channels
    p = tl.arange(0, LOCATIONS)
    there = p < locations
    cells = grid + (image * locations + p) * channels
    g = tl.load(cells[:, None] + c, mask=there[:, None] & inside, other=0.0).to(tl.float32)
    given = tl.load(scores + row * locations + p, mask=there, other=-float("inf"))
    powers = tl.exp(given - tl.max(given, 0))
    attention = powers / tl.sum(powers, 0)
    if tl.program_id(1) == 0:
        tl.store(alpha + row * locations + p, attention, mask=there)
    # A location beyond the last has weight 0, unless a score of NaN has made all weights NaN.
    mixed = tl.sum(tl.where(there[:, None], attention[:, None] * g, 0.0), 0)
    tl.store(context + row * channels + c, mixed, mask=inside)


@triton.jit
def context_backward(
    grad_weights, grad_alpha, grad_context, grid, row_index,
    captions, locations, channels,
    BLOCK_LOCATIONS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute the gradient with respect to alpha; one program per row and block of locations.

    It is the sum of ``grad_alpha`` and the part that comes through the context.
    """
    row = tl.program_id(0)
    image = tl.load(row_index + row) // captions
    p = tl.program_id(1) * BLOCK_LOCATIONS + tl.arange(0, BLOCK_LOCATIONS)
    there = p < locations
    cells = grid + (image * locations + p) * channels
    gradient = tl.load(grad_alpha + row * locations + p, mask=there, other=0.0)
    for start in range(0, channels, BLOCK):
        c = start + tl.arange(0, BLOCK)
        inside = c < channels
        grad_z = tl.load(grad_context + row * channels + c, mask=inside, other=0.0)
        g = tl.load(cells[:, None] + c, mask=there[:, None] & inside, other=0.0).to(tl.float32)
        gradient += tl.sum(g * grad_z, 1)
    tl.store(grad_weights + row * locations + p, gradient, mask=there)


@triton.jit(do_not_specialize=["rows"])  # the number of rows changes as captions end
def tanh_backward(
    grad_keys, grad_query, grad_weight, grad_weights, alpha, exp_keys, exp_query, weight, row_index,
    rows, locations, units,
    CAPTIONS: tl.constexpr, ROWS: tl.constexpr, LOCATIONS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute the backward pass of softmax and tanh; one program per image and block of units.

    One program computes each sum in a fixed order, so that results do not vary from run to run.
    """
    image = tl.program_id(0)
    a = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = a < units
    p = tl.arange(0, LOCATIONS)
    there = p < locations
    at = (image * locations + p)[:, None] * units + a
    full = there[:, None] & inside
    k = tl.load(exp_keys + at, mask=full, other=0.0).to(tl.float32)
    r = tl.arange(0, ROWS)
    row_indices = tl.load(row_index + r, mask=r < rows, other=-1)
    scale = 4.0 * tl.load(weight + a, mask=inside, other=0.0)
    grad_key = tl.zeros([LOCATIONS, BLOCK], tl.float32)
    sum_weight = tl.zeros([BLOCK], tl.float32)
    # Unrolled and branch-free, so that one caption is loaded while another is summed up.
    for caption in tl.static_range(CAPTIONS):
        found = row_indices == image * CAPTIONS + caption
        count = tl.sum(found.to(tl.int32), 0)  # 1; or 0, and then nothing is loaded or stored
        row = tl.sum(tl.where(found, r, 0), 0)
        q = tl.load(exp_query + row * units + a, mask=a < units * count, other=0.0)
        attention = tl.load(alpha + row * locations + p, mask=p < locations * count, other=0.0)
        gradient = tl.load(
            grad_weights + row * locations + p, mask=p < locations * count, other=0.0
        )
        grad_scores = attention * (gradient - tl.sum(attention * gradient, 0))
        s = 1.0 / (1.0 + k * q)
        weighed = grad_scores[:, None] * s
        slope = weighed - weighed * s
        tl.store(grad_query + row * units + a, scale * tl.sum(slope, 0), mask=a < units * count)
        sum_weight -= 2.0 * tl.sum(weighed, 0)
        grad_key += slope
    tl.store(grad_weight + image * units + a, sum_weight, mask=inside)
    total = tl.load(grad_keys + at, mask=full, other=0.0) + scale * grad_key
    tl.store(grad_keys + at, total, mask=full)


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def tanh(x):
    """Compute tanh from e^{-2|x|}, which cannot overflow; NaN stays NaN."""
    small = tl.exp(-2.0 * tl.abs(x))
    return tl.where(x < 0.0, -1.0, 1.0) * (1.0 - small) / (1.0 + small)


@triton.jit
def gate(
    first, second, third, first_step, second_step, third_step, row, column, inside,
    ADDENDS: tl.constexpr,
):  # fmt: skip
    value = tl.load(first + row * first_step + column, mask=inside, other=0.0).to(tl.float32)
    if ADDENDS > 1:
        value += tl.load(second + row * second_step + column, mask=inside, other=0.0)
    if ADDENDS > 2:
        value += tl.load(third + row * third_step + column, mask=inside, other=0.0)
    return value


@triton.jit
def lstm_cell(
    hidden, cell, active, previous, first, second, third, first_step, second_step, third_step, size,
    ADDENDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program a row and block of units."""
    row = tl.program_id(0)
    u = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = u < size
    i = sigmoid(gate(first, second, third, first_step, second_step, third_step,
                         row, u, inside, ADDENDS))  # fmt: skip
    f = sigmoid(gate(first, second, third, first_step, second_step, third_step,
                         row, size + u, inside, ADDENDS))  # fmt: skip
    g = tanh(gate(first, second, third, first_step, second_step, third_step,
                    row, 2 * size + u, inside, ADDENDS))  # fmt: skip
    o = sigmoid(gate(first, second, third, first_step, second_step, third_step,
                         row, 3 * size + u, inside, ADDENDS))  # fmt: skip
    now = f * tl.load(previous + row * size + u, mask=inside, other=0.0) + i * g
    tl.store(cell + row * size + u, now, mask=inside)
    tl.store(hidden + row * size + u, o * tanh(now), mask=inside)
    gates = active + row * 4 * size + u
    tl.store(gates, i, mask=inside)
    tl.store(gates + size, f, mask=inside)
    tl.store(gates + 2 * size, g, mask=inside)
    tl.store(gates + 3 * size, o, mask=inside)


@triton.jit
def lstm_cell_backward(
    grad_gates,
    grad_previous,
    grad_hidden,
    grad_cell,
    active,
    previous,
    cell,
    size,
    BLOCK: tl.constexpr,
):
    """One program a row and block of units."""
    row = tl.program_id(0)
    u = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = u < size
    at = row * size + u
    gates = active + row * 4 * size + u
    i = tl.load(gates, mask=inside, other=0.0)
    f = tl.load(gates + size, mask=inside, other=0.0)
    g = tl.load(gates + 2 * size, mask=inside, other=0.0)
    o = tl.load(gates + 3 * size, mask=inside, other=0.0)
    grad_h = tl.load(grad_hidden + at, mask=inside, other=0.0)
    seen = tanh(tl.load(cell + at, mask=inside, other=0.0))
    grad_c = tl.load(grad_cell + at, mask=inside, other=0.0)
    grad_c += grad_h * o * (1.0 - seen * seen)
    grad_f = grad_c * tl.load(previous + at, mask=inside, other=0.0) * f * (1.0 - f)
    out = grad_gates + row * 4 * size + u
    tl.store(out, grad_c * g * i * (1.0 - i), mask=inside)
    tl.store(out + size, grad_f, mask=inside)
    tl.store(out + 2 * size, grad_c * i * (1.0 - g * g), mask=inside)
    tl.store(out + 3 * size, grad_h * seen * o * (1.0 - o), mask=inside)
    tl.store(grad_previous + at, grad_c * f, mask=inside)
