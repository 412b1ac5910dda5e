"""The Transformer against torch.nn.TransformerDecoder with the same weights, caption by caption."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captioning.decoding import Beam
from captioning.kernels.backend import Backend, use_backend
from captioning.models.decoders import packing, transformer
from captioning.models.decoders.transformer import Transformer
from captioning.support.errors import CaptioningError

VOCABULARY, CHANNELS, LOCATIONS, HIDDEN, HEADS = 30, 12, 7, 12, 3
"""torch's decoder has grids of as many channels as its hidden states."""

SIZES = {"heads": HEADS, "hidden_dim": HIDDEN, "feedforward_dim": 9, "layers": 2}
START, END, UNK = 1, 2, 3

CAPTIONS = torch.tensor(
    [
        [[1, 8, 9, 10, 2], [1, 11, 2, 0, 0], [0, 0, 0, 0, 0]],
        [[1, 12, 13, 2, 0], [1, 14, 15, 16, 17], [1, 2, 0, 0, 0]],
    ]
)
"""Of different lengths; one image has fewer captions than the other."""


def decoder_of(**settings: Any) -> Transformer:
    """A small decoder in double precision, with weights large enough to matter."""
    torch.manual_seed(0)
    decoder = Transformer(VOCABULARY, CHANNELS, **{**SIZES, **settings})
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.uniform_(-0.7, 0.7)
    return decoder.double().eval()


def grid_of(images: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(images, LOCATIONS, CHANNELS, generator=generator, dtype=torch.double)


def activation_of(units: int) -> Callable[[Tensor], Tensor]:
    """SwiGLU, of the first and the second half of the units."""
    return lambda x: x[..., :units] / (1 + (-x[..., :units]).exp()) * x[..., units:]


def torchs_own(ours: Transformer) -> nn.TransformerDecoder:
    """Torch's decoder with our weights."""
    gated = ours.layers[0].feedforward.gated
    units = ours.layers[0].feedforward.output.in_features
    layer = nn.TransformerDecoderLayer(
        HIDDEN, HEADS, units, 0.0, activation_of(units) if gated else "gelu",
        batch_first=True, norm_first=True,
    )  # fmt: skip
    layer.linear1 = nn.Linear(HIDDEN, ours.layers[0].feedforward.input.out_features)
    theirs = nn.TransformerDecoder(layer, len(ours.layers), norm=nn.LayerNorm(HIDDEN)).double()
    theirs.norm.load_state_dict(ours.output_norm.state_dict())
    for own, other in zip(ours.layers, theirs.layers, strict=True):
        query, memory = own.cross_query, own.cross_keys_values
        for source, target in (
            (own.self_norm, other.norm1),
            (own.cross_norm, other.norm2),
            (own.feedforward_norm, other.norm3),
            (own.self_output, other.self_attn.out_proj),
            (own.cross_output, other.multihead_attn.out_proj),
            (own.feedforward.input, other.linear1),
            (own.feedforward.output, other.linear2),
        ):
            target.load_state_dict(source.state_dict())
        with torch.no_grad():
            other.self_attn.in_proj_weight.copy_(own.self_input.weight)
            other.self_attn.in_proj_bias.copy_(own.self_input.bias)
            other.multihead_attn.in_proj_weight.copy_(torch.cat([query.weight, memory.weight]))
            other.multihead_attn.in_proj_bias.copy_(torch.cat([query.bias, memory.bias]))
    return theirs.eval()


def codes_by_loops(count: int, size: int) -> Tensor:
    """Vaswani et al. 2017, section 3.5, with the sines first."""
    half = size // 2
    rows = [
        [math.sin(t / 10_000 ** (i / half)) for i in range(half)]
        + [math.cos(t / 10_000 ** (i / half)) for i in range(half)]
        for t in range(count)
    ]
    return torch.tensor(rows, dtype=torch.double)


def textbook(ours: Transformer, image: Tensor, tokens: list[int]) -> tuple[Tensor, Tensor]:
    """The logits T x V and the attention maps layers x T x P of one caption, by torch's decoder."""
    theirs, maps = torchs_own(ours), []

    def look(module: nn.Module, args: tuple[Tensor, ...], kwargs: Any, output: Any) -> None:
        maps.append(module.forward(*args, average_attn_weights=True)[1][0])

    for layer in theirs.layers:
        layer.multihead_attn.register_forward_hook(look, with_kwargs=True)
    read = tokens[:-1]
    positions = ours.positions
    codes = codes_by_loops(len(read), HIDDEN) if positions is None else positions[: len(read)]
    words = ours.embedding.weight[read] * math.sqrt(ours.embed_dim)
    if ours.input_words is not None:
        words = words @ ours.input_words.weight.T
    mean = image.mean(1, keepdim=True)
    variance = (image - mean).square().mean(1, keepdim=True)
    if ours.normalize_grid:
        image = (image - mean) / (variance + 1e-5).sqrt()
    mask = nn.Transformer.generate_square_subsequent_mask(len(read), dtype=torch.double)
    x = theirs((words + codes)[None], image[None], tgt_mask=mask)[0]
    if ours.output_hidden is not None:
        x = x @ ours.output_hidden.weight.T
    return x @ ours.output_words.weight.T + ours.output_words.bias, torch.stack(maps)


def captions_of(tokens: Tensor) -> Iterator[tuple[int, int, list[int]]]:
    """Image, caption and its tokens without the padding."""
    for image, of_image in enumerate(tokens.tolist()):
        for caption, row in enumerate(of_image):
            words = [token for token in row if token]
            if words:
                yield image, caption, words


OPTIONS: list[dict[str, Any]] = [
    {},
    {"activation": "swiglu", "positions": "sinusoidal", "tie_embeddings": False},
    {"embed_dim": 5, "layers": 3, "attention_layers": "all", "normalize_grid": False},
    {"layers": 1, "heads": 1, "embed_dim": 16, "tie_embeddings": False},
]


@pytest.fixture(params=["as on a CPU", "as on a GPU"])
def order(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows that are computed: real words alone, or all."""
    if request.param == "as on a GPU":
        monkeypatch.setattr(transformer, "pack", packing._pack_all)


@pytest.mark.parametrize("backend", ["torch", "auto"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.usefixtures("order")
def test_logits_and_coverage_are_those_of_torchs_decoder(
    options: dict[str, Any], backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "HEADS", options.get("heads", HEADS))
    decoder, grid = decoder_of(**options), grid_of()
    with use_backend(backend):
        output = decoder(grid, CAPTIONS)
    assert output.coverage is not None
    assert output.attention is not None
    row_of = {int(place): row for row, place in enumerate(output.positions)}
    length, found = CAPTIONS.shape[2] - 1, 0
    for image, caption, tokens in captions_of(CAPTIONS):
        logits, maps = textbook(decoder, grid[image], tokens)
        maps = maps.mean(0) if options.get("attention_layers") == "all" else maps[-1]
        rows = [
            row_of[(image * CAPTIONS.shape[1] + caption) * length + word]
            for word in range(len(tokens) - 1)
        ]
        assert output.targets[rows].tolist() == tokens[1:]
        torch.testing.assert_close(output.logits[rows], logits)
        torch.testing.assert_close(output.attention[rows], maps)
        torch.testing.assert_close(output.coverage[image, caption], maps.sum(0))
        found += len(rows)
    assert found == (output.targets != 0).sum()
    assert output.coverage[0, 2].eq(0).all()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_step_is_a_word_of_torchs_decoder(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after the beams have been reordered, and an image has left."""
    monkeypatch.setitem(globals(), "HEADS", options.get("heads", HEADS))
    decoder, grid = decoder_of(**options), grid_of()
    tokens = torch.tensor([[[1, 5, 6], [1, 7, 8]], [[1, 9, 10], [1, 11, 12]]])
    memory = decoder.prepare(grid)
    state = decoder.start(memory, 2)
    for word in range(2):
        state = decoder.step(tokens[:, :, word], state, memory).state
    memory = {name: value[1:] for name, value in memory.items()}
    state = {name: value[1:, [1, 0, 1]] for name, value in state.items()}
    captions = [
        [*tokens[1, parent, :2].tolist(), last] for parent, last in ((1, 20), (0, 21), (1, 22))
    ]
    step = decoder.step(torch.tensor([[20, 21, 22]]), state, memory)
    assert step.attention is not None
    for beam, caption in enumerate(captions):
        logits, maps = textbook(decoder, grid[1], [*caption, END])
        maps = maps.mean(0) if options.get("attention_layers") == "all" else maps[-1]
        torch.testing.assert_close(step.logits[0, beam], logits[-1])
        torch.testing.assert_close(step.attention[0, beam], maps[-1])


def test_a_step_computes_one_word_and_what_depends_on_the_image_is_computed_once() -> None:
    decoder, rows, grids = decoder_of(), [], []
    for layer in decoder.layers:
        layer.self_input.register_forward_hook(lambda _, args, __: rows.append(len(args[0])))
        layer.cross_keys_values.register_forward_hook(lambda _, args, __: grids.append(args[0]))
    Beam(beam_size=4, max_length=6)(decoder, grid_of(3))
    assert max(rows) == 3 * 4
    assert [tuple(grid.shape) for grid in grids] == [(3, LOCATIONS, CHANNELS)] * len(decoder.layers)
    rows.clear(), grids.clear()
    decoder(grid_of(), CAPTIONS)
    assert rows == [int((CAPTIONS[..., 1:] != 0).sum())] * len(decoder.layers)
    assert [tuple(grid.shape) for grid in grids] == [(2, LOCATIONS, CHANNELS)] * len(decoder.layers)


def test_tied_embeddings_are_one_matrix_and_both_activations_have_as_many_parameters() -> None:
    def count(decoder: nn.Module) -> int:
        return sum(parameter.numel() for parameter in decoder.parameters())

    tied, free = (
        Transformer(VOCABULARY, CHANNELS),
        Transformer(VOCABULARY, CHANNELS, tie_embeddings=False),
    )
    assert count(free) - count(tied) == VOCABULARY * tied.embed_dim
    gelu, swiglu = (
        Transformer(VOCABULARY, CHANNELS, activation=activation)  # type: ignore[arg-type]
        for activation in ("gelu", "swiglu")
    )
    assert count(swiglu) == pytest.approx(count(gelu), rel=1e-3)


def test_learned_positions_begin_as_the_sinusoids() -> None:
    learned = Transformer(VOCABULARY, CHANNELS, max_positions=9)
    assert learned.positions is not None
    expected = codes_by_loops(9, learned.hidden_dim).float()
    torch.testing.assert_close(learned.positions.detach(), expected, atol=1e-5, rtol=1e-4)


def test_dropout_of_words_and_grids_is_for_training_alone() -> None:
    def probabilities(decoder: Transformer) -> Tensor:
        return decoder(grid_of(), CAPTIONS).token_log_probs()

    for settings in ({"dropout": 0.5}, {"word_dropout": 0.5}, {"grid_dropout": 0.5}):
        decoder = decoder_of(**{"dropout": 0.0, **settings})
        exact = probabilities(decoder)
        torch.testing.assert_close(probabilities(decoder), exact)
        decoder.train()
        assert not torch.allclose(probabilities(decoder), exact)
    all_unknown = decoder_of(dropout=0.0, word_dropout=1.0)
    unknown = CAPTIONS.masked_fill(CAPTIONS > UNK, UNK)
    row = all_unknown(grid_of(), unknown).logits
    torch.testing.assert_close(all_unknown.train()(grid_of(), CAPTIONS).logits, row)


def test_a_caption_longer_than_the_learned_positions_is_refused() -> None:
    decoder = decoder_of(max_positions=3)
    with pytest.raises(CaptioningError, match=r"model\.max_positions=3: .* 4 .*sinusoidal"):
        decoder(grid_of(), CAPTIONS)
    decoder(grid_of(), CAPTIONS[..., :4])
    with pytest.raises(CaptioningError, match=r"model\.max_positions=3"):
        Beam(max_length=8, min_length=8)(decoder, grid_of())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"heads": 5}, "model.heads=5 must divide model.hidden_dim=12"),
        ({"layers": 0}, "model.layers=0: choose 1 or more"),
        ({"dropout": 1.5}, "model.dropout=1.5"),
    ],
)
def test_settings_that_cannot_be_are_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(CaptioningError, match=words):
        decoder_of(**settings)
