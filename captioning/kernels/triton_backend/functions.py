"""Attention and the LSTM's cell in Triton: what ``attention.c`` and ``cell.c`` have in C.

Definitions, names and shapes are those of the two files;
:mod:`captioning.kernels.triton_backend.launch` calls them.
"""

import triton
import triton.language as tl


@triton.jit
def score(
    scores, exp_keys, exp_query, weight, place,
    captions, locations, units,
    SOME: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One program a row and some of its locations: their scores."""
    row = tl.program_id(0)
    image = tl.load(place + row) // captions
    p = tl.program_id(1) * SOME + tl.arange(0, SOME)
    there = p < locations
    keys = exp_keys + (image * locations + p) * units
    half = tl.zeros([SOME], tl.float32)  # (sum v - v . tanh) / 2
    total = 0.0
    for start in range(0, units, TILE):
        a = start + tl.arange(0, TILE)
        inside = a < units
        q = tl.load(exp_query + row * units + a, mask=inside, other=0.0)
        v = tl.load(weight + a, mask=inside, other=0.0)
        k = tl.load(keys[:, None] + a, mask=there[:, None] & inside, other=0.0).to(tl.float32)
        half += tl.sum(v / (1.0 + k * q), 1)
        total += tl.sum(v, 0)
    tl.store(scores + row * locations + p, total - 2.0 * half, mask=there)


@triton.jit
def mix(
    alpha, context, scores, grid, place,
    captions, locations, channels,
    LOCATIONS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One program a row and tile of channels: the softmax, and what it mixes of the grid."""
    row = tl.program_id(0)
    image = tl.load(place + row) // captions
    c = tl.program_id(1) * TILE + tl.arange(0, TILE)
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
    # A location that is not there has the weight 0, but a score of NaN makes all weights NaN.
    mixed = tl.sum(tl.where(there[:, None], attention[:, None] * g, 0.0), 0)
    tl.store(context + row * channels + c, mixed, mask=inside)


@triton.jit
def through_context(
    by_weights, by_alpha, by_context, grid, place,
    captions, locations, channels,
    SOME: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One program a row and some of its locations: by alpha, what comes through the context too."""
    row = tl.program_id(0)
    image = tl.load(place + row) // captions
    p = tl.program_id(1) * SOME + tl.arange(0, SOME)
    there = p < locations
    cells = grid + (image * locations + p) * channels
    gradient = tl.load(by_alpha + row * locations + p, mask=there, other=0.0)
    for start in range(0, channels, TILE):
        c = start + tl.arange(0, TILE)
        inside = c < channels
        of_context = tl.load(by_context + row * channels + c, mask=inside, other=0.0)
        g = tl.load(cells[:, None] + c, mask=there[:, None] & inside, other=0.0).to(tl.float32)
        gradient += tl.sum(g * of_context, 1)
    tl.store(by_weights + row * locations + p, gradient, mask=there)


@triton.jit(do_not_specialize=["rows"])  # or it would be compiled anew as captions end
def slopes(
    by_keys, by_query, by_weight, by_weights, alpha, exp_keys, exp_query, place,
    rows, locations, units,
    CAPTIONS: tl.constexpr, ROWS: tl.constexpr, LOCATIONS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One program an image and tile of units, back through the softmax of all the image's rows.

    So each sum is made by one program in one order: results do not differ from run to run.
    """
    image = tl.program_id(0)
    a = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = a < units
    p = tl.arange(0, LOCATIONS)
    there = p < locations
    at = (image * locations + p)[:, None] * units + a
    full = there[:, None] & inside
    k = tl.load(exp_keys + at, mask=full, other=0.0).to(tl.float32)
    r = tl.arange(0, ROWS)
    places = tl.load(place + r, mask=r < rows, other=-1)
    of_key = tl.load(by_keys + at, mask=full, other=0.0)
    of_weight = tl.zeros([TILE], tl.float32)
    # Unrolled and without a branch, so that one caption's numbers are loaded during another's sums.
    for caption in tl.static_range(CAPTIONS):
        found = places == image * CAPTIONS + caption
        count = tl.sum(found.to(tl.int32), 0)  # 1, or 0: then nothing is loaded or stored
        row = tl.sum(tl.where(found, r, 0), 0)
        q = tl.load(exp_query + row * units + a, mask=a < units * count, other=0.0)
        attention = tl.load(alpha + row * locations + p, mask=p < locations * count, other=0.0)
        gradient = tl.load(by_weights + row * locations + p, mask=p < locations * count, other=0.0)
        of_scores = attention * (gradient - tl.sum(attention * gradient, 0))
        s = 1.0 / (1.0 + k * q)
        weighed = of_scores[:, None] * s
        slope = weighed - weighed * s
        tl.store(by_query + row * units + a, tl.sum(slope, 0), mask=a < units * count)
        of_weight += tl.sum(weighed, 0)
        of_key += slope
    tl.store(by_weight + image * units + a, of_weight, mask=inside)
    tl.store(by_keys + at, of_key, mask=full)


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def tanh(x):
    """By e^{-2|x|}, which cannot overflow; what is no number stays none."""
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
    hidden, cell, active, before, first, second, third, first_step, second_step, third_step, size,
    ADDENDS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One program a row and tile of units."""
    row = tl.program_id(0)
    u = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = u < size
    i = sigmoid(gate(first, second, third, first_step, second_step, third_step,
                         row, u, inside, ADDENDS))  # fmt: skip
    f = sigmoid(gate(first, second, third, first_step, second_step, third_step,
                         row, size + u, inside, ADDENDS))  # fmt: skip
    g = tanh(gate(first, second, third, first_step, second_step, third_step,
                    row, 2 * size + u, inside, ADDENDS))  # fmt: skip
    o = sigmoid(gate(first, second, third, first_step, second_step, third_step,
                         row, 3 * size + u, inside, ADDENDS))  # fmt: skip
    now = f * tl.load(before + row * size + u, mask=inside, other=0.0) + i * g
    tl.store(cell + row * size + u, now, mask=inside)
    tl.store(hidden + row * size + u, o * tanh(now), mask=inside)
    gates = active + row * 4 * size + u
    tl.store(gates, i, mask=inside)
    tl.store(gates + size, f, mask=inside)
    tl.store(gates + 2 * size, g, mask=inside)
    tl.store(gates + 3 * size, o, mask=inside)


@triton.jit
def lstm_cell_gradients(
    by_gates, by_before, by_hidden, by_cell, active, before, cell, size, TILE: tl.constexpr
):
    """One program a row and tile of units."""
    row = tl.program_id(0)
    u = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = u < size
    at = row * size + u
    gates = active + row * 4 * size + u
    i = tl.load(gates, mask=inside, other=0.0)
    f = tl.load(gates + size, mask=inside, other=0.0)
    g = tl.load(gates + 2 * size, mask=inside, other=0.0)
    o = tl.load(gates + 3 * size, mask=inside, other=0.0)
    of_hidden = tl.load(by_hidden + at, mask=inside, other=0.0)
    seen = tanh(tl.load(cell + at, mask=inside, other=0.0))
    of_cell = tl.load(by_cell + at, mask=inside, other=0.0)
    of_cell += of_hidden * o * (1.0 - seen * seen)
    of_forget = of_cell * tl.load(before + at, mask=inside, other=0.0) * f * (1.0 - f)
    out = by_gates + row * 4 * size + u
    tl.store(out, of_cell * g * i * (1.0 - i), mask=inside)
    tl.store(out + size, of_forget, mask=inside)
    tl.store(out + 2 * size, of_cell * i * (1.0 - g * g), mask=inside)
    tl.store(out + 3 * size, of_hidden * seen * o * (1.0 - o), mask=inside)
    tl.store(by_before + at, of_cell * f, mask=inside)
