"""A check of decoders."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from captioning.decoding import Beam, Decoding, Greedy, Sample
from captioning.decoding.base import evaluation_mode
from captioning.kernels.backend import Backend, use_backend
from captioning.models.decoders.base import Decoder
from captioning.support.special_tokens import END, PAD, START, UNK
from captioning.testing.comparison import (
    assert_close,
    check_gradients,
    copied,
    devices,
    in_double,
)

LENGTHS = ((3, 1, 4), (2, 0, 3), (1, 5, 2))
"""The number of words of each caption of each image; 0 means that there is no caption."""

UNRESTRICTED: dict[str, Any] = {
    "max_length": 6,
    "min_length": 0,
    "allow_unknown": True,
    "allow_repeats": True,
    "no_repeat_ngram": 0,
}


def check_decoder(decoder: Decoder, *, channels: int, locations: int = 5) -> None:
    """Check that a decoder has the properties on which training and decoding rely.

    The check compares the decoder with itself: word by word and on whole captions, on a single
    image and in a batch, and with each backend. It compares gradients with finite differences,
    which is slow: use a small decoder.

    Args:
        decoder: a decoder with a vocabulary of at least 8 tokens; it is not changed.
        channels: number of channels of its grid.
        locations: number of locations of the grid.

    Raises:
        AssertionError: a property does not hold; the message says which.
    """
    words = decoder.vocabulary_size
    assert words >= 8, f"vocabulary_size={words}: use a decoder with at least 8 tokens."
    decoder = copied(decoder)
    generator = torch.Generator().manual_seed(0)
    grid = torch.randn(len(LENGTHS), locations, channels, generator=generator)
    tokens = made_up_captions(words, generator)
    with torch.random.fork_rng(devices=[]), evaluation_mode(decoder):
        _check_forward(decoder, grid, tokens)
        _check_steps(decoder, grid, tokens)
        _check_independence(decoder, grid, tokens)
        _check_decoding(decoder, grid)
        _check_backends(decoder, grid, tokens)
        _check_gradients(decoder, grid, tokens)
        _check_state_dict(decoder, grid, tokens)


def made_up_captions(vocabulary_size: int, generator: torch.Generator) -> Tensor:
    """Random captions with :data:`LENGTHS` words: ``<start>`` ... ``<end>``, padded."""
    longest = max(max(of_image) for of_image in LENGTHS)
    tokens = torch.full((len(LENGTHS), len(LENGTHS[0]), longest + 2), PAD)
    for of_image, rows in zip(LENGTHS, tokens, strict=True):
        for length, row in zip(of_image, rows, strict=True):
            if length:
                drawn = torch.randint(UNK, vocabulary_size, (length,), generator=generator)
                row[: length + 2] = torch.tensor([START, *drawn.tolist(), END])
    return tokens


def _name(decoder: Decoder) -> str:
    return type(decoder).__name__


def _check_forward(decoder: Decoder, grid: Tensor, tokens: Tensor) -> None:
    name, output = _name(decoder), decoder(grid, tokens)
    expected = (tokens[..., 1:] != PAD).sum(-1)
    assert output.lengths.equal(expected), (
        f"{name}: `lengths` are {output.lengths.tolist()} where the captions have "
        f"{expected.tolist()} targets."
    )
    assert output.logits.shape == (len(output.targets), decoder.vocabulary_size), (
        f"{name}: `logits` have shape {tuple(output.logits.shape)} for {len(output.targets)} "
        f"targets and a vocabulary of {decoder.vocabulary_size}."
    )
    targets = tokens[..., 1:].flatten()[output.positions]
    assert output.targets.equal(targets), (
        f"{name}: `positions` do not say where the targets stand in the captions."
    )
    found = output.positions[output.targets != PAD].sort().values.tolist()
    real = (tokens[..., 1:].flatten() != PAD).nonzero().flatten().tolist()
    assert found == real, f"{name}: `targets` must contain each true next token exactly once."
    if output.coverage is not None:
        _check_sums(
            decoder,
            output.coverage.sum(-1),
            output.lengths,
            f"{name}: `coverage` does not sum to the number of words of each caption",
        )


def _check_steps(decoder: Decoder, grid: Tensor, tokens: Tensor) -> None:
    """Check that `step`, word by word, gives the same log-probabilities as `forward`."""
    name, output = _name(decoder), decoder(grid, tokens)
    memory = decoder.prepare(grid)
    state = decoder.start(memory, tokens.shape[1])
    stepwise = torch.zeros(tokens[..., 1:].shape)
    coverage = None
    for word in range(tokens.shape[2] - 1):
        step, again = (decoder.step(tokens[..., word], state, memory) for _ in range(2))
        assert_close(
            again.logits,
            step.logits,
            f"{name}: logits of a second `step` with the same arguments; what the next word needs "
            "belongs into the state, which decoding selects and reorders with the captions",
        )
        state, following = step.state, tokens[..., word + 1]
        for part, value in state.items():
            assert value.shape[:2] == tokens.shape[:2], (
                f"{name}: state[{part!r}] has shape {tuple(value.shape)}; the first two must be "
                f"images and captions, {tuple(tokens.shape[:2])}, or beams cannot be reordered."
            )
        log_probs = step.logits.log_softmax(-1).gather(-1, following[..., None]).squeeze(-1)
        stepwise[..., word] = log_probs * (following != PAD)
        if step.attention is not None:
            looked = step.attention * (following != PAD)[..., None]
            coverage = looked if coverage is None else coverage + looked
    assert_close(
        stepwise,
        output.token_log_probs(),
        f"{name}: log-probabilities by `step`, word by word, and by `forward`",
    )
    if coverage is not None and output.coverage is not None:
        assert_close(coverage, output.coverage, f"{name}: coverage by `step` and by `forward`")


def _check_independence(decoder: Decoder, grid: Tensor, tokens: Tensor) -> None:
    """Check that log-probabilities do not depend on the rest of the batch or on later words."""
    name = _name(decoder)
    together = decoder(grid, tokens).token_log_probs()
    for image, caption in (tokens[..., 1] != PAD).nonzero().tolist():
        alone = tokens[image : image + 1, caption : caption + 1]
        found = decoder(grid[image : image + 1], alone).token_log_probs()
        assert_close(
            found[0, 0],
            together[image, caption],
            f"{name}: caption {caption} of image {image} alone and in a batch",
        )
    changed = tokens.clone()
    changed[0, 0, 3] = UNK if tokens[0, 0, 3] != UNK else UNK + 1
    found = decoder(grid, changed).token_log_probs()
    assert_close(
        found[0, 0, :2],
        together[0, 0, :2],
        f"{name}: log-probabilities of words before the one that was changed; `forward` must not "
        "see the words that it predicts",
    )


def _check_decoding(decoder: Decoder, grid: Tensor) -> None:
    name = _name(decoder)
    greedy = Greedy(**UNRESTRICTED)
    beam_of_one = Beam(**UNRESTRICTED, beam_size=1, length_penalty=0.0)
    best_word = Sample(**UNRESTRICTED, top_k=1)
    expected = greedy(decoder, grid, attention=True)
    alike: list[Decoding] = [beam_of_one, best_word]
    for decoding in alike:
        for ours, theirs in zip(decoding(decoder, grid), expected, strict=True):
            assert ours[0].tokens == theirs[0].tokens, (
                f"{name}: {type(decoding).__name__} of the most probable word writes "
                f"{ours[0].tokens}, and greedy decoding {theirs[0].tokens}."
            )
    everything: list[Decoding] = [
        greedy, Beam(**UNRESTRICTED, beam_size=3), Sample(**UNRESTRICTED, captions=3)
    ]  # fmt: skip
    for decoding in everything:
        way = type(decoding).__name__
        together = decoding(decoder, grid, attention=True)
        for image, hypotheses in enumerate(together):
            for found in hypotheses:
                exact = _log_prob(decoder, grid[image : image + 1], found.tokens)
                assert math.isclose(found.log_prob, exact, rel_tol=1e-3, abs_tol=1e-3), (
                    f"{name}: {way} says that {found.tokens} has log-probability "
                    f"{found.log_prob:.5g}, and `forward` {exact:.5g}."
                )
                if found.attention is not None:
                    _check_sums(
                        decoder,
                        found.attention.sum(-1),
                        torch.ones(len(found.tokens)),
                        f"{name}: the attention weights of a word do not sum to 1",
                    )
            if not isinstance(decoding, Sample):  # whose draws depend on the batch
                alone = decoding(decoder, grid[image : image + 1])[0]
                assert [h.tokens for h in alone] == [h.tokens for h in hypotheses], (
                    f"{name}: {way} writes other captions of an image alone than in a batch."
                )


def _check_sums(decoder: Decoder, sums: Tensor, expected: Tensor, message: str) -> None:
    """Check sums of attention weights, which may be smaller with ``partial_attention``."""
    if not decoder.partial_attention:
        assert_close(sums, expected, message)
        return
    assert (sums >= 0).all() and (sums <= expected + 1e-4).all(), (  # noqa: PT018
        f"{message}, or to less: they are {sums.tolist()}."
    )


def _log_prob(decoder: Decoder, grid: Tensor, words: list[int]) -> float:
    ended = len(words) < int(UNRESTRICTED["max_length"])
    tokens = torch.tensor([[[START, *words, *([END] if ended else [])]]])
    with torch.no_grad():
        return float(decoder(grid, tokens).token_log_probs().sum())


def _check_backends(decoder: Decoder, grid: Tensor, tokens: Tensor) -> None:
    """Compare log-probabilities and gradients of each backend, on each device."""
    name = _name(decoder)
    expected = _with_gradients(decoder, grid, tokens, "torch")
    for device in devices():
        on_device = copied(decoder).to(device)
        for where in dict.fromkeys(("cpu", device.type)):  # of the tokens
            found = _with_gradients(on_device, grid.to(device), tokens.to(where), "auto")
            for what, ours in found.items():
                assert_close(
                    ours,
                    expected[what],
                    f"{name}: {what} by backend=auto on {device} and by backend=torch",
                    1e-3,
                )
        _check_mixed_precision(on_device, grid.to(device), tokens.to(device), expected)


def _check_mixed_precision(
    decoder: Decoder, grid: Tensor, tokens: Tensor, exact: Mapping[str, Tensor]
) -> None:
    """Compare the backends under autocast to bfloat16, for which there are kernels of their own.

    They may differ by a few times of what the precision itself makes of the results. The state has
    to stay in the precision in which it starts: in bfloat16, sums over words lose their last terms.
    """
    with torch.autocast(grid.device.type, torch.bfloat16):
        with torch.no_grad():
            memory = decoder.prepare(grid)
            state = decoder.start(memory, tokens.shape[1])
            after = decoder.step(tokens[..., 0], state, memory).state
        for part, value in state.items():
            assert part not in after or after[part].dtype == value.dtype, (
                f"{_name(decoder)}: in mixed precision, state[{part!r}] begins in {value.dtype} "
                f"and is in {after[part].dtype} after a word, as layers return it: cast it back."
            )
        plain, found = (
            _with_gradients(decoder, grid, tokens, backend) for backend in ("torch", "auto")
        )
    for what, ours in found.items():
        theirs, wanted = plain[what].cpu().double(), exact[what].double()
        allowed = 5 * (theirs - wanted).norm() + 0.05 * wanted.norm() + 1e-4
        apart = (ours.cpu().double() - theirs).norm()
        assert apart <= allowed, (
            f"{_name(decoder)}: {what} by backend=auto on {grid.device} and by backend=torch, "
            f"under autocast to bfloat16: they differ by {apart.item():.3g}, where the precision "
            f"allows {allowed.item():.3g}."
        )


def _with_gradients(
    decoder: Decoder, grid: Tensor, tokens: Tensor, backend: Backend
) -> dict[str, Tensor]:
    named = [(name, each) for name, each in decoder.named_parameters() if each.requires_grad]
    with use_backend(backend):
        log_probs = decoder(grid, tokens).token_log_probs()
        gradients = torch.autograd.grad(
            log_probs.mean(), [each for _, each in named], allow_unused=True
        )
    results = {"the log-probabilities": log_probs}
    for (name, _), gradient in zip(named, gradients, strict=True):
        assert gradient is not None, (
            f"{_name(decoder)}: {name} gets no gradient, so it cannot be learned."
        )
        results[f"the gradient with respect to {name}"] = gradient
    return results


def _check_gradients(decoder: Decoder, grid: Tensor, tokens: Tensor) -> None:
    double = in_double(decoder)
    grid = grid.double()

    def loss() -> Tensor:
        output = double(grid, tokens)
        total: Tensor = output.token_log_probs().mean()
        if output.coverage is not None:
            total = total + (1 - output.coverage).square().mean()
        return total

    learned = [(name, each) for name, each in double.named_parameters() if each.requires_grad]
    check_gradients(loss, learned, _name(decoder))


def _check_state_dict(decoder: Decoder, grid: Tensor, tokens: Tensor) -> None:
    """Check that the state dict contains everything on which the results depend."""
    other = copied(decoder)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.normal_()
    other.load_state_dict(decoder.state_dict())
    assert_close(
        other(grid, tokens).token_log_probs(),
        decoder(grid, tokens).token_log_probs(),
        f"{_name(decoder)}: log-probabilities before and after saving and loading",
    )
