"""The Transformer decoder against PyTorch's own, and its kept keys against whole captions."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captioning.models.decoders import packing, transformer
from captioning.models.decoders.transformer import TransformerDecoder
from captioning.objectives import CrossEntropy
from captioning.support.errors import CaptioningError
from captioning.testing import check_decoder, check_objective

CHANNELS, LOCATIONS, WORDS = 6, 5, 11
SIZES = {"hidden_dim": 8, "layers": 2, "heads": 2, "feed_forward_dim": 12}


def decoder_of(**options: Any) -> TransformerDecoder:
    torch.manual_seed(0)
    return TransformerDecoder(WORDS, CHANNELS, **SIZES | options)


def pytorchs_own(decoder: TransformerDecoder) -> nn.TransformerDecoder:
    """PyTorch's Transformer decoder with the same weights."""
    layer = nn.TransformerDecoderLayer(
        8, 2, 12, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    own = nn.TransformerDecoder(layer, len(decoder.layers), norm=nn.LayerNorm(8)).double()
    pairs = {"norm1": "self_norm", "norm2": "grid_norm", "norm3": "forward_norm"} | {
        "linear1": "forward_hidden",
        "linear2": "forward_output",
        "self_attn.out_proj": "self_output",
        "multihead_attn.out_proj": "grid_output",
    }
    state: dict[str, Tensor] = {}
    for kind in ("weight", "bias"):
        state[f"norm.{kind}"] = getattr(decoder.norm, kind)
        for number, ours in enumerate(decoder.layers):
            prefix = f"layers.{number}."
            for theirs, mine in pairs.items():
                state[f"{prefix}{theirs}.{kind}"] = getattr(getattr(ours, mine), kind)
            state[f"{prefix}self_attn.in_proj_{kind}"] = getattr(ours.self_projection, kind)
            joined = [getattr(ours.grid_query, kind), getattr(ours.grid_projection, kind)]
            state[f"{prefix}multihead_attn.in_proj_{kind}"] = torch.cat(joined)
    own.load_state_dict(state)
    return own.eval()


def test_it_equals_pytorchs_decoder() -> None:
    decoder = decoder_of(dropout=0.0, normalize_grid=False).double()
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.4)
    own = pytorchs_own(decoder)
    grid = torch.randn(2, LOCATIONS, CHANNELS).double()
    tokens = torch.tensor([[[1, 5, 6, 7, 2]], [[1, 8, 2, 0, 0]]])
    output = decoder(grid, tokens)
    inputs = tokens[:, 0, :-1]
    places = torch.arange(4)[:, None]
    rates = 10000.0 ** (-torch.arange(0, 8, 2) / 8)
    positions = torch.zeros(4, 8)
    positions[:, 0::2], positions[:, 1::2] = (places * rates).sin(), (places * rates).cos()
    expected = own(
        decoder.embedding.weight[inputs] * 8**0.5 + positions,
        grid @ decoder.grid_input.weight.T + decoder.grid_input.bias,
        tgt_mask=nn.Transformer.generate_square_subsequent_mask(4).double(),
        tgt_is_causal=True,
    )
    logits = expected @ decoder.embedding.weight.T + decoder.output_words.bias
    real = [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)]
    rows = output.positions.argsort()  # by image and word
    for row, (image, word) in zip(rows, real, strict=True):
        torch.testing.assert_close(output.logits[row], logits[image, word], rtol=1e-6, atol=1e-6)
    assert output.targets[rows].tolist() == [5, 6, 7, 2, 8, 2]


@pytest.mark.parametrize("order", ["real words alone", "as on a GPU"])
def test_maps_are_those_of_pytorchs_last_layer(order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several captions of an image, of different lengths, each of them alone."""
    if order == "as on a GPU":
        monkeypatch.setattr(transformer, "pack", packing._pack_all)
    decoder = decoder_of(dropout=0.0, normalize_grid=False).double()
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.4)
    last, maps = pytorchs_own(decoder).layers[-1], []
    grid = torch.randn(2, LOCATIONS, CHANNELS).double()
    tokens = torch.tensor([[[1, 5, 6, 7, 2], [1, 8, 2, 0, 0]], [[0] * 5, [1, 9, 10, 2, 0]]])
    output = decoder(grid, tokens)
    inputs = {}
    decoder.layers[-1].grid_query.register_forward_hook(
        lambda _, given, __: inputs.update(queries=given[0])
    )
    for image, caption in ((0, 0), (0, 1), (1, 1)):
        words = int((tokens[image, caption, 1:] != 0).sum())
        decoder(grid[image : image + 1], tokens[image, caption][None, None, : words + 1])
        places = (grid[image] @ decoder.grid_input.weight.T + decoder.grid_input.bias)[None]
        _, looked = last.multihead_attn(inputs["queries"][None], places, places)
        maps.append(looked[0])
        torch.testing.assert_close(output.coverage[image, caption], looked[0].sum(0))
    assert output.attention is not None
    real = output.targets != 0
    found = output.attention[real][output.positions[real].argsort()]
    torch.testing.assert_close(found, torch.cat(maps))
    assert output.coverage[1, 0].eq(0).all()


@pytest.mark.parametrize("options", [{}, {"tie_embeddings": False, "normalize_grid": False}])
def test_it_is_a_decoder(options: dict[str, Any]) -> None:
    check_decoder(decoder_of(**options), channels=CHANNELS)


def test_it_is_trained_by_cross_entropy_with_the_attention_term() -> None:
    check_objective(CrossEntropy(attention_penalty=1.0), decoder_of(), channels=CHANNELS)


def test_a_word_does_not_see_later_ones() -> None:
    decoder, grid = decoder_of().eval(), torch.randn(1, LOCATIONS, CHANNELS)
    first, second = (decoder(grid, torch.tensor([[[1, 5, 6, last, 2]]])) for last in (7, 8))
    torch.testing.assert_close(first.logits[:3], second.logits[:3])
    assert not torch.allclose(first.logits[3], second.logits[3])


def test_nothing_is_computed_for_padding() -> None:
    decoder, rows = decoder_of().eval(), []
    decoder.layers[0].forward_hidden.register_forward_hook(
        lambda _, inputs, __: rows.append(len(inputs[0]))
    )
    decoder(torch.randn(1, LOCATIONS, CHANNELS), torch.tensor([[[1, 5, 6, 7, 2], [1, 2, 0, 0, 0]]]))
    assert rows == [5]


def test_the_keys_of_an_image_are_computed_once_for_all_its_captions() -> None:
    decoder, seen = decoder_of().eval(), []
    for layer in decoder.layers:
        layer.grid_projection.register_forward_hook(
            lambda _, inputs, __: seen.append(tuple(inputs[0].shape))
        )
    decoder(torch.randn(2, LOCATIONS, CHANNELS), torch.tensor([[[1, 5, 2]] * 3] * 2))
    assert seen == [(2, LOCATIONS, 8)] * 2


def test_words_are_dropped_in_training_only() -> None:
    decoder = decoder_of(word_dropout=1.0)
    tokens = torch.tensor([[[1, 5, 0]]])
    assert decoder.drop_words(tokens).tolist() == [[[1, 3, 0]]]
    assert decoder.eval().drop_words(tokens).tolist() == [[[1, 5, 0]]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "hidden_dim=8 .*model.heads=3"),
        ({"hidden_dim": 9, "heads": 3}, "hidden_dim=9 must be even"),
        ({"layers": 0}, "layers=0"),
        ({"dropout": 1.5}, "dropout=1.5"),
    ],
)
def test_wrong_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CaptioningError, match=message):
        decoder_of(**options)
