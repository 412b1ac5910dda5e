"""Whatever is done to a linear layer of a model holds in training and in decoding alike."""

from typing import Any

import pytest
import torch
from right_support import (
    TOKENS,
    assert_right,
    captions_of,
    decoder_loss,
    linear_layers,
    small_decoder,
    small_grid,
    step_log_probs,
    trained,
)  # fmt: skip
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from captioning.kernels.backend import use_backend
from captioning.models.decoders.base import Decoder

KINDS = ("lstm", "attn_lstm")
CASES = [
    (backend, kind, [name])
    for backend in ("torch", "c")
    for kind in KINDS
    for name in linear_layers(kind)
] + [("triton", kind, linear_layers(kind)) for kind in ["attn_lstm"]]  # its interpreter is slow
IDS = [f"{way}-{kind}-{names[0] if way != 'triton' else 'all'}" for way, kind, names in CASES]

each_layer = pytest.mark.parametrize(
    ("backend", "kind", "names"), CASES, ids=IDS, indirect=["backend"]
)


class LoRALinear(nn.Linear):
    """A linear layer with a low-rank addition, as a subclass."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None)
        self.load_state_dict(layer.state_dict())
        self.down = nn.Parameter(torch.randn(2, layer.in_features) / 2)
        self.up = nn.Parameter(torch.randn(layer.out_features, 2) / 2)

    def forward(self, input: Tensor) -> Tensor:
        low_rank = nn.functional.linear(nn.functional.linear(input, self.down), self.up)
        return super().forward(input) + low_rank


class LoRAModule(nn.Module):
    """A linear layer with a low-rank addition, as a module that takes the layer's place."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.down = nn.Parameter(torch.randn(2, layer.in_features) / 2)
        self.up = nn.Parameter(torch.randn(layer.out_features, 2) / 2)

    def forward(self, input: Tensor) -> Tensor:
        added: Tensor = self.layer(input) + input @ self.down.T @ self.up.T
        return added


def replace(decoder: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(decoder.get_submodule(parent), child, layer)


def change_weights(decoder: nn.Module, name: str, change: Any) -> None:
    """Let ``change`` compute the new weight and the new bias of a layer from the old ones."""
    layer = decoder.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        weight, bias = change(layer.weight, layer.bias)
        layer.weight.copy_(weight)
        if layer.bias is not None:
            layer.bias.copy_(bias)


def assert_trains_and_decodes_as(decoder: Decoder, equal: Decoder) -> None:
    """Forward, word by word, and decoded, a model is one that is computed by torch alone."""
    grid = small_grid()
    with use_backend("torch"), torch.no_grad():
        expected = equal(grid, TOKENS).token_log_probs()
        captions = captions_of(equal, grid)
    for log_probs in (decoder(grid, TOKENS).token_log_probs(), step_log_probs(decoder, grid)):
        torch.testing.assert_close(log_probs.detach(), expected, rtol=1e-4, atol=1e-5)
    assert captions_of(decoder, grid) == captions


@each_layer
@pytest.mark.parametrize("lora", [LoRALinear, LoRAModule])
def test_a_lora_layer(backend: str, kind: str, names: list[str], lora: Any) -> None:
    decoder = small_decoder(kind)
    merged = small_decoder(kind)
    for name in names:
        layer = lora(decoder.get_submodule(name))
        replace(decoder, name, layer)
        low_rank = layer.up @ layer.down
        change_weights(merged, name, lambda weight, bias, added=low_rank: (weight + added, bias))
    assert_trains_and_decodes_as(decoder, merged)
    assert_right(backend, decoder, lambda: decoder_loss(decoder, small_grid()))
    assert layer.up.grad is not None
    assert layer.up.grad.abs().sum() > 0


@each_layer
def test_a_lora_layer_whose_base_is_frozen(backend: str, kind: str, names: list[str]) -> None:
    decoder = small_decoder(kind).requires_grad_(False)
    for name in names:
        layer = LoRALinear(decoder.get_submodule(name))  # type: ignore[arg-type]
        layer.weight.requires_grad_(False)
        replace(decoder, name, layer)
    if layer.bias is not None:
        layer.bias.requires_grad_(False)
    assert_right(backend, decoder, lambda: decoder_loss(decoder, small_grid()))
    assert {"up", "down"} <= {name.rpartition(".")[2] for name in trained(decoder)}


@each_layer
def test_weight_norm(backend: str, kind: str, names: list[str]) -> None:
    decoder, equal = small_decoder(kind), small_decoder(kind)
    for name in names:
        layer = weight_norm(decoder.get_submodule(name))
        with torch.no_grad():
            layer.parametrizations.weight.original0.mul_(1.5)  # the rows' norms
        change_weights(equal, name, lambda weight, bias: (1.5 * weight, bias))
    assert_trains_and_decodes_as(decoder, equal)
    assert_right(backend, decoder, lambda: decoder_loss(decoder, small_grid()))


@each_layer
def test_a_forward_hook(backend: str, kind: str, names: list[str]) -> None:
    decoder, equal = small_decoder(kind), small_decoder(kind)
    called = set()

    def scale(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        called.add(module)
        return 1.5 * output

    for name in names:
        decoder.get_submodule(name).register_forward_hook(scale)
        scaled = lambda weight, bias: (1.5 * weight, None if bias is None else 1.5 * bias)  # noqa: E731
        change_weights(equal, name, scaled)
    assert_trains_and_decodes_as(decoder, equal)
    assert_right(backend, decoder, lambda: decoder_loss(decoder, small_grid()))
    assert called == {decoder.get_submodule(name) for name in names}


@each_layer
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_a_full_backward_hook(backend: str, kind: str, names: list[str]) -> None:
    """One that changes the gradient is heeded, and sees the gradients that torch's layer has."""
    decoder, grid, seen = small_decoder(kind), small_grid(), []

    def change(module: nn.Module, grad_input: Any, grad_output: Any) -> Any:
        seen.append(grad_output[0].detach().clone())
        return tuple(None if each is None else 1.5 * each for each in grad_input)

    for name in names:
        decoder.get_submodule(name).register_full_backward_hook(change)

    def gradients() -> list[Tensor]:
        found = torch.autograd.grad(decoder_loss(decoder, grid), list(trained(decoder).values()))
        calls, seen[:] = sorted(seen, key=lambda each: (each.shape, each.sum().item())), []
        return [*calls, *found]

    found = gradients()
    with use_backend("torch"):
        expected = gradients()
    assert len(found) == len(expected) > len(trained(decoder))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=5e-4, atol=5e-5)


PARAMETERS = [
    (backend, kind, name)
    for backend in ("torch", "c")
    for kind in KINDS
    for name, _ in small_decoder(kind).named_parameters()
] + [("triton", "attn_lstm", name) for name in ("attention.key.weight", "attention.score")]


@pytest.mark.parametrize(("backend", "kind", "name"), PARAMETERS, indirect=["backend"])
@pytest.mark.parametrize("others", [False, True], ids=["alone frozen", "alone trained"])
def test_frozen_parts(backend: str, kind: str, name: str, others: bool) -> None:
    decoder = small_decoder(kind)
    for each, parameter in decoder.named_parameters():
        parameter.requires_grad_((each == name) == others)
    assert_right(backend, decoder, lambda: decoder_loss(decoder, small_grid()))
    for each, parameter in decoder.named_parameters():
        assert (parameter.grad is not None) == ((each == name) == others), each


@pytest.mark.parametrize("kind", KINDS)
def test_tied_embeddings(backend: str, kind: str) -> None:
    decoder = small_decoder(kind, tie_embeddings=True)
    assert_right(backend, decoder, lambda: decoder_loss(decoder, small_grid()))


@pytest.mark.parametrize("backend", ["torch", "c"], indirect=True)
@pytest.mark.parametrize("gate", ["scalar", "channel", "none"])
@pytest.mark.parametrize("deep_output", [True, False])
def test_every_variant_of_the_model(backend: str, gate: str, deep_output: bool) -> None:
    decoder = small_decoder(gate=gate, deep_output=deep_output, word_query=False)
    with torch.no_grad():
        expected = decoder(small_grid(), TOKENS).token_log_probs()
        torch.testing.assert_close(step_log_probs(decoder, small_grid()), expected)
    assert_right(backend, decoder, lambda: decoder_loss(decoder, small_grid()))
