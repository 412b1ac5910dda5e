"""Backward passes in any number and order, and products of all kinds, under each backend."""

import copy
import gc
import pickle
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from right_support import (
    HIDDEN,
    TOKENS,
    assert_right,
    assert_same_gradients,
    decoder_loss,
    gradients_of,
    small_decoder,
    small_grid,
    trained,
)  # fmt: skip
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from captioning.kernels.backend import use_backend
from captioning.kernels.deferred import DeferredWeightGradients
from captioning.kernels.ops import (
    AdditiveKeys,
    Rows,
    additive_attention,
    cross_entropy,
    deferred_weight_gradients,
    lstm_cell,
    mask_tokens,
)  # fmt: skip
from captioning.models.decoders.attn_lstm import AttentionLSTM
from captioning.models.decoders.lstm import LSTM


def expected_gradients(decoder: LSTM, loss: Callable[[], Tensor]) -> dict[str, Tensor | None]:
    with use_backend("torch"):
        found = gradients_of(loss, trained(decoder))[1]
    decoder.zero_grad()
    return {name: None if each is None else each.clone() for name, each in found.items()}


def grads(decoder: LSTM) -> dict[str, Tensor | None]:
    return {name: each.grad for name, each in trained(decoder).items()}


def scaled(gradients: dict[str, Tensor | None], factor: float) -> dict[str, Tensor | None]:
    return {name: None if each is None else factor * each for name, each in gradients.items()}


# Triton's interpreter is slow, and works in one thread only.
without_triton = pytest.mark.parametrize("backend", ["torch", "c"], indirect=True)


@pytest.fixture
def decoder() -> LSTM:
    return small_decoder()


def test_two_backward_passes_add_up_and_nothing_doubles(backend: str, decoder: LSTM) -> None:
    expected = expected_gradients(decoder, lambda: decoder_loss(decoder, small_grid()))
    loss = decoder_loss(decoder, small_grid())
    loss.backward(retain_graph=True)
    assert_same_gradients(grads(decoder), expected)
    loss.backward(retain_graph=True)
    assert_same_gradients(grads(decoder), scaled(expected, 2), atol=1e-4)
    decoder.zero_grad()
    loss.backward()
    assert_same_gradients(grads(decoder), expected)


@without_triton
def test_two_losses_of_one_forward(backend: str, decoder: LSTM) -> None:
    def losses() -> list[Tensor]:
        output = decoder(small_grid(), TOKENS)
        log_probs = output.token_log_probs()
        # The second one does not need the last words, nor all captions.
        return [output.logits.square().mean(), log_probs[0, :, :2].sum(), output.coverage[1].std()]

    for chosen in range(3):
        expected = expected_gradients(decoder, lambda chosen=chosen: losses()[chosen])
        found = losses()
        for each in [*range(chosen + 1, 3), *range(chosen)]:
            found[each].backward(retain_graph=True)
        decoder.zero_grad()
        found[chosen].backward()
        ours = {
            n: torch.zeros_like(p) if p.grad is None else p.grad
            for n, p in trained(decoder).items()
        }
        theirs = {
            n: torch.zeros_like(p) if expected[n] is None else expected[n]
            for n, p in trained(decoder).items()
        }
        assert_same_gradients(ours, theirs)


@without_triton
@pytest.mark.parametrize(
    "first", ["hidden_gates.weight", "attention.key.weight", "output_words.bias"]
)
def test_gradients_of_some_parameters_first(backend: str, decoder: LSTM, first: str) -> None:
    expected = expected_gradients(decoder, lambda: decoder_loss(decoder, small_grid()))
    loss = decoder_loss(decoder, small_grid())
    some = [decoder.get_parameter(first), decoder.embedding.weight]
    found = torch.autograd.grad(loss, some, retain_graph=True)
    torch.testing.assert_close(found[0], expected[first], rtol=2e-4, atol=2e-5)
    loss.backward(inputs=some, retain_graph=True)
    decoder.zero_grad()
    loss.backward(retain_graph=True)
    assert_same_gradients(grads(decoder), expected)
    rest = [each for name, each in trained(decoder).items() if name != first]
    for ours, name in zip(
        torch.autograd.grad(loss, rest), [n for n in trained(decoder) if n != first], strict=True
    ):
        torch.testing.assert_close(ours, expected[name], rtol=2e-4, atol=2e-5)


def test_a_gradient_with_respect_to_the_keys_and_the_grid(
    backend: str, decoder: AttentionLSTM
) -> None:
    found = []
    for choice in (backend, "torch"):
        grid = small_grid().requires_grad_()
        with use_backend("torch" if choice == "torch" else "native"):
            memory = decoder.prepare(grid)
            query = torch.ones(4, HIDDEN)
            rows = Rows.all(2, 2, query.device)
            words = [decoder.attention(query * word, memory, rows)[1] for word in (1, 2)]
            loss = sum(each.square().sum() for each in words)
            keys = memory["keys"].keys
            (first,) = torch.autograd.grad(loss, [keys], retain_graph=True)
            (second,) = torch.autograd.grad(loss, [grid], retain_graph=True)
            found.append((first, second, *torch.autograd.grad(loss, [keys, grid])))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-5)


@without_triton
def test_a_pass_that_is_never_backpropagated(backend: str, decoder: LSTM) -> None:
    expected = expected_gradients(decoder, lambda: decoder_loss(decoder, small_grid()))
    dropped = decoder_loss(decoder, small_grid(1))
    loss = decoder_loss(decoder, small_grid())
    del dropped
    kept = decoder_loss(decoder, small_grid(2))
    loss.backward()
    assert_same_gradients(grads(decoder), expected)
    assert kept.requires_grad


def test_an_exception_in_a_backward_pass(backend: str, decoder: LSTM) -> None:
    """What a pass that stopped has put aside is not added to the next one's gradients."""
    expected = expected_gradients(decoder, lambda: decoder_loss(decoder, small_grid()))
    raised = []

    def stop(module: nn.Module, args: Any, output: Tensor) -> None:
        def hook(grad: Tensor) -> None:
            raised.append(1)
            if len(raised) == 3:  # after two words
                raise ZeroDivisionError

        if output.requires_grad:
            output.register_hook(hook)

    handle = decoder.attention.query.register_forward_hook(stop)
    loss = decoder_loss(decoder, small_grid())
    handle.remove()
    with pytest.raises(ZeroDivisionError):
        loss.backward(retain_graph=True)
    decoder.zero_grad()
    loss.backward()
    assert_same_gradients(grads(decoder), expected)


def test_gradients_accumulate_over_two_forwards(backend: str, decoder: LSTM) -> None:
    expected = expected_gradients(
        decoder, lambda: decoder_loss(decoder, small_grid()) + decoder_loss(decoder, small_grid(1))
    )
    decoder_loss(decoder, small_grid()).backward()
    decoder_loss(decoder, small_grid(1)).backward()
    assert_same_gradients(grads(decoder), expected, atol=1e-4)
    decoder.zero_grad()
    both = decoder_loss(decoder, small_grid()) + decoder_loss(decoder, small_grid(1))
    both.backward()
    assert_same_gradients(grads(decoder), expected, atol=1e-4)


@without_triton
def test_a_model_called_within_a_model(backend: str) -> None:
    """Two decoders whose loops over words are nested, as in an ensemble that shares a step."""
    outer, inner = small_decoder(), small_decoder("lstm", embed_dim=5)
    module = nn.ModuleList([outer, inner])
    step = outer.recurrent_step

    def nested(*args: Any) -> Any:
        state = step(*args)
        extra = decoder_loss(inner, small_grid())
        return state | {"hidden": state["hidden"] * extra.tanh()}

    outer.recurrent_step = nested  # type: ignore[method-assign]
    assert_right(backend, module, lambda: decoder_loss(outer, small_grid()))


@pytest.mark.parametrize("kind", ["lstm", "attn_lstm"])
def test_a_checkpointed_step(backend: str, kind: str) -> None:
    """The sizes are equal: tensors saved in another order would not be noticed by their shapes."""
    decoder = small_decoder(kind, word_query=False) if kind == "attn_lstm" else small_decoder(kind)
    step = decoder.recurrent_step
    expected = expected_gradients(decoder, lambda: decoder_loss(decoder, small_grid()))
    decoder.recurrent_step = lambda *args: checkpoint(  # type: ignore[method-assign]
        step, *args, use_reentrant=False
    )
    decoder_loss(decoder, small_grid()).backward()
    assert_same_gradients(grads(decoder), expected)


@without_triton
def test_a_checkpointed_model(backend: str, decoder: LSTM) -> None:
    expected = expected_gradients(decoder, lambda: decoder_loss(decoder, small_grid()))
    loss = checkpoint(decoder_loss, decoder, small_grid(), use_reentrant=False)
    loss.backward()
    assert_same_gradients(grads(decoder), expected)


@without_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="is for the CPU")
def test_a_model_whose_saved_tensors_are_packed(backend: str, decoder: LSTM) -> None:
    expected = expected_gradients(decoder, lambda: decoder_loss(decoder, small_grid()))
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x.clone(), lambda x: x):
        loss = decoder_loss(decoder, small_grid())
    loss.backward()
    assert_same_gradients(grads(decoder), expected)


@without_triton
def test_backward_passes_from_other_threads(backend: str, decoder: LSTM) -> None:
    """Four at a time, over one graph."""
    expected = expected_gradients(decoder, lambda: decoder_loss(decoder, small_grid()))
    loss, found = decoder_loss(decoder, small_grid()), []
    leaves = trained(decoder)

    def run() -> None:
        gradients = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True)
        found.append(dict(zip(leaves, gradients, strict=True)))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for gradients in found:
        assert_same_gradients(gradients, expected)


def test_a_forward_in_another_thread(decoder: LSTM) -> None:
    """The choice of this thread does not concern the other one's, and gradients agree."""
    expected = expected_gradients(decoder, lambda: decoder_loss(decoder, small_grid()))
    losses: list[Tensor] = []
    with use_backend("torch"):
        thread = threading.Thread(target=lambda: losses.append(decoder_loss(decoder, small_grid())))
        thread.start()
        thread.join()
    losses[0].backward()
    assert_same_gradients(grads(decoder), expected)


@pytest.mark.parametrize("how", ["backward", "part", "never", "exception"])
def test_graphs_are_freed(backend: str, decoder: AttentionLSTM, how: str) -> None:
    gc.collect()
    gc.disable()  # there must be no cycles that only it would find
    try:
        grid = small_grid().requires_grad_()
        memory = decoder.prepare(grid)
        rows, query = Rows.all(2, 2, grid.device), torch.ones(4, HIDDEN)
        with deferred_weight_gradients():
            for _ in range(3):
                _, context = decoder.attention(query, memory, rows)
                query = decoder.attention.query(context)
        loss = query.square().sum()
        watched = [weakref.ref(memory["keys"].keys), weakref.ref(query), weakref.ref(context)]
        if how == "backward":
            loss.backward()
        elif how == "part":
            torch.autograd.grad(loss, [decoder.attention.query.bias])
        elif how == "exception":

            def stop(grad: Tensor) -> None:
                raise ZeroDivisionError

            context.register_hook(stop)
            try:
                loss.backward()
            except ZeroDivisionError as error:
                error.__traceback__ = None
        del loss, query, context, memory
        assert [each() for each in watched] == [None] * 3
    finally:
        gc.enable()


def test_partial_passes_over_one_graph_do_not_pile_up(backend: str) -> None:
    """What each puts aside is for another node, which is not always reached."""
    torch.manual_seed(0)
    keys = AdditiveKeys(torch.randn(2, 3, 4, requires_grad=True))
    query, weight = torch.randn(4, 4, requires_grad=True), torch.randn(4, requires_grad=True)
    rows = Rows.all(2, 2, query.device)
    layer = nn.Linear(4, 4)
    with deferred_weight_gradients():
        context = additive_attention(layer(query), keys, weight, torch.randn(2, 3, 5), rows)[1]
    for _ in range(3):
        torch.autograd.grad(context.sum(), [query], retain_graph=True)
    _, sums = keys.linked() if backend != "torch" else (None, {})
    assert len(sums) == 0
    if backend != "torch":
        found = products_of(context.grad_fn)
        assert found
        assert all(len(each.record) == 0 for each in found)


def products_of(node: Any) -> list[Any]:
    """The products of linear layers in a graph."""
    if node is None:
        return []
    found = [node] if "_Product" in type(node).__name__ else []
    return found + [each for next_node, _ in node.next_functions for each in products_of(next_node)]


@without_triton
def test_a_model_can_be_copied_while_a_memory_exists(backend: str, decoder: AttentionLSTM) -> None:
    memory = decoder.prepare(small_grid())
    rows, query = Rows.all(2, 2, torch.device("cpu")), torch.ones(4, HIDDEN)
    before = decoder.attention(query, memory, rows)
    copied = copy.deepcopy(decoder)
    loaded = pickle.loads(pickle.dumps(decoder))
    for other in (copied, loaded):
        torch.testing.assert_close(other.attention(query, memory, rows), before)
    with torch.no_grad():
        kept = pickle.loads(pickle.dumps(decoder.prepare(small_grid())["keys"]))
        assert torch.equal(kept.keys, memory["keys"].keys)
        copy.deepcopy(decoder.prepare(small_grid()))


# Products in a loop over words


def loop_right(compute: Callable[[], Tensor], leaves: dict[str, Tensor]) -> None:
    """The loss and gradients of a loop are those of a loop without deferred gradients."""
    with deferred_weight_gradients() as mode:
        assert isinstance(mode, DeferredWeightGradients)
        loss = compute()
    loss.backward()
    found = {name: leaf.grad for name, leaf in leaves.items()}
    for leaf in leaves.values():
        leaf.grad = None
    expected_loss = compute()
    expected_loss.backward()
    torch.testing.assert_close(loss, expected_loss)
    assert_same_gradients(found, {name: leaf.grad for name, leaf in leaves.items()})


SHAPES: dict[str, tuple[int, ...]] = {
    "2-D": (3, 4), "3-D": (2, 3, 4), "1-D": (4,), "no rows": (0, 4), "4-D": (2, 1, 3, 4),
    "no rows of 3-D": (0, 3, 4),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
@pytest.mark.parametrize("bias", [True, False])
def test_inputs_of_any_shape(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 4, bias=bias)
    x = torch.randn(shape, requires_grad=True)
    loop_right(lambda: (layer(layer(x) + layer(2 * x)) ** 2).sum(),
               {"x": x, **dict(layer.named_parameters())})  # fmt: skip


@pytest.mark.parametrize("layout", ["transposed", "strided", "expanded"])
def test_inputs_and_weights_of_any_layout(layout: str) -> None:
    torch.manual_seed(0)
    weight = torch.randn(4, 4).T if layout == "transposed" else torch.randn(4, 8)[:, ::2]
    if layout == "expanded":
        weight = torch.randn(1, 4).expand(4, 4)
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(weight)
    x = torch.randn(4, 3, requires_grad=True)
    loop_right(lambda: (layer(x.T) + layer(x.T[:1].expand(3, 4))).square().sum(),
               {"x": x, **dict(layer.named_parameters())})  # fmt: skip


def test_a_weight_that_is_a_vector() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(4))
    x = torch.randn(3, 4, requires_grad=True)
    loop_right(lambda: nn.functional.linear(x, weight).square().sum(),
               {"x": x, "weight": weight})  # fmt: skip


def test_a_layer_whose_weight_is_replaced_between_words() -> None:
    torch.manual_seed(0)
    x, layer = torch.randn(3, 4, requires_grad=True), nn.Linear(4, 4)
    first, second = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4, 4))

    def compute() -> Tensor:
        layer.weight = first
        y = layer(x)
        layer.weight = second
        y = y + layer(y)
        layer.weight = first
        return (y * layer(y)).sum()

    loop_right(compute, {"x": x, "first": first, "second": second, "bias": layer.bias})


def test_a_weight_whose_data_are_replaced_between_words() -> None:
    torch.manual_seed(0)
    x, layer = torch.randn(3, 4, requires_grad=True), nn.Linear(4, 4)
    first, second = torch.randn(4, 4), torch.randn(4, 4)

    def compute() -> Tensor:
        layer.weight.data = first
        y = layer(x)
        layer.weight.data = second
        return (y * layer(x)).sum()

    loop_right(compute, {"x": x, **dict(layer.named_parameters())})


@pytest.mark.parametrize("autocast", [False, True])
def test_a_weight_changed_in_place_between_words(autocast: bool) -> None:
    """The second word sees the new weight; the gradient of the first is refused or of the old."""
    torch.manual_seed(0)
    x, layer = torch.randn(3, 4, requires_grad=True), nn.Linear(4, 4)
    old = layer.weight.detach().clone()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast, cache_enabled=False):
        with deferred_weight_gradients():
            first = layer(x)
            with torch.no_grad():
                layer.weight.mul_(2)
            second = layer(x)
        torch.testing.assert_close(second, nn.functional.linear(x, 2 * old, layer.bias))
    try:
        (found,) = torch.autograd.grad((first + second).sum(), [x])
    except RuntimeError as error:
        assert "modified inplace" in str(error).replace("by an ", "")  # noqa: PT017
    else:
        torch.testing.assert_close(found, (3 * old).sum(0).expand(3, 4), rtol=0.02, atol=0.02)


def test_autocast_on_and_off_between_words() -> None:
    torch.manual_seed(0)
    x, layer = torch.randn(3, 4, requires_grad=True), nn.Linear(4, 4)

    def compute() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
            with torch.autocast("cpu", enabled=False):
                z = layer(x)
            w = layer(z)
        assert [y.dtype, z.dtype, w.dtype] == [torch.bfloat16, torch.float32, torch.bfloat16]
        return (y.float() * layer(x) + z * w.float()).sum()

    found, expected = [], []
    for deferred in (True, False):
        layer.zero_grad()
        x.grad = None
        with deferred_weight_gradients() if deferred else torch.enable_grad():
            loss = compute()
        loss.backward()
        (found if deferred else expected).extend(
            [loss.detach(), x.grad, layer.weight.grad, layer.bias.grad]
        )
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.05)


@pytest.mark.parametrize("weight", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("input", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("autocast", [False, True])
def test_types_are_those_of_an_ordinary_layer(
    weight: torch.dtype, input: torch.dtype, autocast: bool
) -> None:
    """And what an ordinary layer refuses is refused."""
    torch.manual_seed(0)
    layer, x = nn.Linear(4, 4).to(weight), torch.randn(3, 4, dtype=input, requires_grad=True)

    def run(deferred: bool) -> list[Tensor] | str:
        try:
            block = deferred_weight_gradients() if deferred else torch.enable_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast), block:
                y = layer(x)
            return [y, *torch.autograd.grad(y.sum(), [x, layer.weight, layer.bias])]
        except RuntimeError as error:
            return type(error).__name__

    ours, theirs = run(True), run(False)
    assert isinstance(ours, list) == isinstance(theirs, list)
    if isinstance(ours, list):
        for one, other in zip(ours, theirs, strict=True):
            assert isinstance(other, Tensor)
            torch.testing.assert_close(one, other, rtol=0.02, atol=0.02)


class Doubled(Tensor):
    """A tensor subclass that has products of its own, as quantised weights have."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.linear:
            x, weight, *rest = args
            return nn.functional.linear(x, 2 * weight.as_subclass(Tensor), *rest)
        return super().__torch_function__(func, types, args, kwargs or {})


def test_a_tensor_subclass_keeps_its_own_products() -> None:
    torch.manual_seed(0)
    weight = torch.randn(4, 4).as_subclass(Doubled).requires_grad_()
    x = torch.randn(3, 4, requires_grad=True)
    loop_right(lambda: nn.functional.linear(x, weight).as_subclass(Tensor).square().sum(), {"x": x},
    )  # fmt: skip


def test_a_hook_on_a_weight_sees_the_whole_gradient() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(4, 4), torch.randn(3, 4)
    layer.weight.register_hook(lambda grad: 2 * grad)
    loop_right(lambda: layer(layer(x)).square().sum(), dict(layer.named_parameters()))


# Whole models in other types, and what ops write to


@without_triton
@pytest.mark.parametrize("kind", ["lstm", "attn_lstm"])
def test_a_model_in_double_precision(backend: str, kind: str) -> None:
    """It is computed by the reference, and as exactly."""
    decoder = small_decoder(kind).double()
    value, found = gradients_of(lambda: decoder_loss(decoder, small_grid()), trained(decoder))
    found = {name: each.clone() for name, each in found.items() if each is not None}
    with use_backend("torch"):
        expected_value, expected = gradients_of(
            lambda: decoder_loss(decoder, small_grid()), trained(decoder)
        )
    assert value.dtype == torch.float64
    torch.testing.assert_close(value, expected_value, rtol=1e-12, atol=1e-12)
    assert_same_gradients(found, expected, rtol=1e-10, atol=1e-10)


@without_triton
@pytest.mark.parametrize("kind", ["lstm", "attn_lstm"])
def test_a_model_under_autocast(backend: str, kind: str) -> None:
    """Rounded as torch rounds, in gradients too."""
    decoder = small_decoder(kind)

    def loss() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return decoder_loss(decoder, small_grid())

    exact = expected_gradients(decoder, lambda: decoder_loss(decoder, small_grid()))
    value, found = gradients_of(loss, trained(decoder))
    torch.testing.assert_close(value, decoder_loss(decoder, small_grid()), rtol=0.02, atol=0.02)
    for name, gradient in found.items():
        difference = (gradient - exact[name]).norm() / exact[name].norm().clamp(min=1e-3)
        assert difference < 0.1, name


@without_triton
def test_masking_logits_is_seen_by_autograd(backend: str) -> None:
    """In place, and so a backward pass that needs the logits as they were is refused."""
    logits = torch.randn(2, 5, requires_grad=True) * 1
    loss = logits.square().sum()
    mask_tokens(logits.detach(), torch.tensor([[1], [2]]))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@without_triton
@pytest.mark.parametrize("word", [-1, 5, 10**6])
def test_words_outside_of_the_vocabulary_are_refused(backend: str, word: int) -> None:
    logits = torch.randn(2, 5)
    with pytest.raises((IndexError, RuntimeError)):
        cross_entropy(logits, torch.tensor([1, word]))
    with pytest.raises((IndexError, RuntimeError)):
        mask_tokens(logits, torch.tensor([[1], [word]]))


def test_addends_that_are_broadcast(backend: str, unchecked: None) -> None:
    torch.manual_seed(0)
    cell, gates, bias = torch.randn(3, 2), torch.randn(3, 8), torch.randn(1, 8)
    with use_backend("torch"):
        expected = lstm_cell(cell, gates, bias)
    torch.testing.assert_close(lstm_cell(cell, gates, bias), expected)
    with pytest.raises(RuntimeError, match="size"):
        lstm_cell(cell, gates[:2])
