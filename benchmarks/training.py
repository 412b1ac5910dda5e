"""Training steps of the attention decoder on grids in memory, with 80 captions a step.

The shapes are those of the best-known tutorial: attention, embedding and hidden state have 512
units, the vocabulary has 2,600 words, captions have 9 to 17 words, and a grid has 196 locations of
512 channels. The reference is :mod:`benchmarks.textbook` in single precision, as in the tutorials.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import Figure, fresh_process, matrix_rate, native_precision, time_in_turns
from benchmarks.textbook import Textbook, rows
from captioning.data.batch import Batch
from captioning.kernels.backend import Backend, use_backend
from captioning.kernels.cuda_graphs import LossGraphs
from captioning.models.decoders.attn_lstm import AttentionLSTM
from captioning.models.decoders.base import Decoder
from captioning.objectives import CrossEntropy, Objective
from captioning.support.memory import keep_freed_memory
from captioning.support.special_tokens import END, PAD, SPECIAL_WORDS, START
from captioning.training.clipping import clip_gradient_norm

IMAGES, CAPTIONS, LOCATIONS, CHANNELS, SIZE, WORDS = 16, 5, 196, 512, 512, 2600
WARM_UP = 30  # steps before the first one that is timed; an epoch of Flickr8k has 375
GOAL = 14  # times the textbook's rate, in bfloat16
REPEAT = 4  # steps in a round, in which the reference makes one


def decoder_of(
    *, words: int = WORDS, size: int = SIZE, attention_dim: int = SIZE, **options: Any
) -> AttentionLSTM:
    """The decoder of ``model=attn_lstm``."""
    return AttentionLSTM(
        words, CHANNELS, hidden_dim=size, embed_dim=size, attention_dim=attention_dim, **options
    )


def batch_of(
    generator: torch.Generator,
    *,
    images: int = IMAGES,
    captions: int = CAPTIONS,
    locations: int = LOCATIONS,
    words: int = WORDS,
    lengths: tuple[int, int] = (9, 17),
) -> tuple[Tensor, Tensor]:
    """Random grids, and random captions of ``lengths[0]`` to ``lengths[1]`` words."""
    shortest, longest = lengths
    length = torch.randint(shortest, longest + 1, (images, captions, 1), generator=generator)
    place = torch.arange(longest + 2)
    size = (images, captions, longest + 2)
    tokens = torch.randint(len(SPECIAL_WORDS), words, size, generator=generator)
    tokens = torch.where(place == 0, START, torch.where(place == length + 1, END, tokens))
    # Last, so that the captions are the same for any number of locations.
    grid = torch.randn(images, locations, CHANNELS, generator=generator).relu()
    return grid, tokens.masked_fill(place > length + 1, PAD)


def multiply_adds(
    tokens: int, *, images: int, locations: int = LOCATIONS, words: int = WORDS, size: int = SIZE,
    attention_dim: int = SIZE,
) -> float:  # fmt: skip
    """The multiply-adds of a forward pass: the grid's once per image, the rest once per token."""
    of_image = locations * CHANNELS * attention_dim + 2 * CHANNELS * size
    of_token = (
        size * (4 * size + attention_dim + CHANNELS)  # projections of the hidden state
        + 4 * size * (size + CHANNELS)  # gates, from the word and the context
        + size * (size + CHANNELS)  # deep output
        + size * words
        + locations * (attention_dim + CHANNELS)
    )
    return float(images * of_image + tokens * of_token)


class Step:
    """A training step of ``train.py``: loss, gradients, gradient clipping, AdamW."""

    def __init__(
        self,
        decoder: Decoder,
        precision: str,
        backend: Backend = "auto",
        objective: Objective | None = None,
    ) -> None:
        self.decoder, self.precision, self.backend = decoder, precision, backend
        self.objective = objective or CrossEntropy()
        self.losses = LossGraphs(self.objective, decoder)
        self.optimizer = torch.optim.AdamW(decoder.parameters(), 1e-3, fused=True)

    def __call__(self, grid: Tensor, tokens: Tensor) -> None:
        """One step."""
        self.make(Batch(grid, tokens, []))

    def make(self, batch: Batch) -> None:
        """One step with a batch whose images have ids."""
        bf16 = self.precision == "bf16"
        with (
            use_backend(self.backend),
            torch.autocast(batch.grid.device.type, torch.bfloat16, bf16),
        ):
            # As in Captioner.losses.
            if self.backend == "torch" or not self.objective.static:
                loss = self.objective(self.decoder, batch)["loss"]
            else:
                loss = self.losses(batch)["loss"]
        self.optimizer.zero_grad()
        loss.backward()
        clip_gradient_norm(self.decoder.parameters(), 2.0)
        self.optimizer.step()


class TextbookStep:
    """A training step of the textbook, with Adam."""

    def __init__(self, model: Textbook) -> None:
        self.model = model
        self.optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def __call__(self, grid: Tensor, tokens: Tensor) -> None:
        """One step."""
        logits, targets = self.model(*rows(grid, tokens))
        loss = nn.functional.cross_entropy(logits, targets)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 2.0)
        self.optimizer.step()


@cache
def textbook_and_batch() -> tuple[TextbookStep, Tensor, Tensor]:
    """The reference and a batch for it, made once in a process."""
    return TextbookStep(Textbook(decoder_of())), *batch_of(torch.Generator().manual_seed(0))


def textbook_step() -> None:
    """Make one training step of the reference."""
    step, grid, tokens = textbook_and_batch()
    step(grid, tokens)


def warm_steps(
    precision: str, backend: Backend, generator: torch.Generator, count: int
) -> Callable[[], None]:
    """Make the first steps of a training; returns a function that makes one of ``count`` more.

    No batch is used twice: repeated shapes would be faster than training is.
    """
    step = Step(decoder_of(), precision, backend)
    batches = [batch_of(generator) for _ in range(WARM_UP + count)]
    for _ in range(WARM_UP):
        step(*batches.pop())
    return lambda: step(*batches.pop())


def errors(precision: str, backend: Backend = "auto", **sizes: int) -> tuple[float, float]:
    """The errors of the loss and its gradients, compared with the textbook in double precision.

    There is no dropout.

    Returns:
        The relative error of the loss, and the largest relative error of the gradient with respect
        to a parameter: the norm of the difference divided by the norm of the exact gradient.
    """
    torch.manual_seed(0)
    grid, tokens = batch_of(torch.Generator().manual_seed(1), images=4, **sizes)
    decoder = decoder_of(words=sizes.get("words", WORDS), dropout=0.0).eval()
    oracle = Textbook(decoder).double().eval()
    with use_backend(backend), torch.autocast("cpu", torch.bfloat16, precision == "bf16"):
        output = decoder(grid, tokens)
    loss = nn.functional.cross_entropy(output.logits.float(), output.targets, ignore_index=PAD)
    loss.backward()
    logits, targets = oracle(*rows(grid.double(), tokens))
    expected = nn.functional.cross_entropy(logits, targets)
    expected.backward()
    apart = [
        float((ours.double() - exact).norm() / exact.norm())
        for exact, ours in oracle.gradients(decoder)
    ]
    return abs(loss.item() - expected.item()) / expected.item(), max(apart)


def run(rounds: int) -> list[Figure]:
    """Time training in this machine's precision and in single precision, with both backends."""
    keep_freed_memory()  # as train.py does
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    count = IMAGES * CAPTIONS
    sample = [batch_of(generator)[1] for _ in range(50)]
    tokens = sum(int((tokens[..., 1:] != PAD).sum()) for tokens in sample) / len(sample)
    figures = []
    native = native_precision()
    rows_of_table: dict[tuple[str, Backend], None] = dict.fromkeys(
        ((native, "auto"), ("fp32", "auto"), (native, "torch"), ("fp32", "torch"))
    )
    for precision, backend in rows_of_table:
        repeat = REPEAT if backend == "auto" else 1
        step = warm_steps(precision, backend, generator, 1 + repeat * rounds)
        # The reference runs with the allocator's default settings, without `keep_freed_memory`.
        with fresh_process() as call:
            call(textbook_step)
            ours, theirs, ratio = time_in_turns(
                step,
                lambda call=call: call(textbook_step),
                rounds=rounds,
                repeat=repeat,
            )
        needed = 3 * 2 * multiply_adds(int(tokens), images=IMAGES)
        rate = matrix_rate(torch.bfloat16 if precision == "bf16" else torch.float32)
        of_loss, of_gradients = errors(precision, backend)
        note = f"relative errors against fp64: loss {of_loss:.1g}, gradients {of_gradients:.1g}"
        floor = count * rate / needed
        name = f"training, {precision}" + ("" if backend == "auto" else f", backend={backend}")
        goal = GOAL if (precision, backend) == ("bf16", "auto") else None
        figures.append(
            Figure(
                name, count / ours, "captions/s", count / theirs, ratio, floor, note,
                goal_ratio=goal,
            )
        )  # fmt: skip
    return figures
