"""The recurrence of the attention LSTM as one op, in bfloat16, and who may not get it."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from right_support import TOKENS, decoder_loss, gradients_of, small_decoder, small_grid, trained
from test_right_layers import LoRALinear, LoRAModule, replace
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from captioning.kernels import products, recurrence, reference
from captioning.kernels.backend import load_kernels, use_backend
from captioning.kernels.ops import AdditiveKeys, RecurrenceWeights, Rows, attention_recurrence
from captioning.kernels.products import PackedMatrix
from captioning.models.attention.additive import AdditiveAttention
from captioning.models.decoders.adaptive_lstm import AdaptiveLSTM
from captioning.models.decoders.attn_lstm import AttentionLSTM
from captioning.models.decoders.hard_attn_lstm import HardAttentionLSTM

pytestmark = pytest.mark.skipif(load_kernels("cpu") is None, reason="there is no C compiler")

ROWS = Rows(torch.tensor([5, 0, 3, 7, 2, 6, 1]), 4, 2)  # one caption has no row
COUNTS = (7, 7, 4, 3, 1)
PAYS = products.pays
TOKEN_COUNT = int((TOKENS[..., 1:] != 0).sum())


@pytest.fixture(autouse=True)
def on_any_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the op whether or not it is faster than oneDNN on the processor of the test."""
    monkeypatch.setattr(products, "pays", lambda: True)


def relative_error(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("columns", [1, 63, 64, 130])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 16])
def test_products_with_a_packed_matrix(count: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).bfloat16()

    x, kernels = random(count, 50)[:, 4:34], load_kernels("cpu")
    for matrix in (random(30, columns), random(columns, 30).T):
        packed = PackedMatrix(kernels, matrix)
        expected = x.double() @ matrix.double()
        torch.testing.assert_close(packed.product(x).double(), expected, rtol=1e-5, atol=1e-5)
        for start in (random(1, columns), random(count, columns)):
            found = packed.product(x, start).double()
            torch.testing.assert_close(found, expected + start.double(), rtol=1e-5, atol=1e-5)


def arguments(
    gate: int | None, query: bool, keep: bool, *, units: int = 18, channels: int = 10
) -> dict[str, Tensor | None]:
    """Random tensors, by name, all of which may get gradients."""
    generator = torch.Generator().manual_seed(0)
    attention, tokens = 5, sum(COUNTS)

    def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=generator).mul_(0.5).to(dtype).requires_grad_()

    return {
        "gates": leaf(tokens, 4 * units, dtype=torch.bfloat16),
        "query": leaf(tokens, attention, dtype=torch.bfloat16) if query else None,
        "hidden": leaf(7, units),
        "cell": leaf(7, units),
        "keep": 1.25 * (leaf(7, units) > -0.4).float() if keep else None,
        "keys": leaf(4, 6, attention, dtype=torch.bfloat16),
        "grid": leaf(4, 6, channels, dtype=torch.bfloat16).detach(),
        "weights.query": leaf(attention, units),
        "weights.query_bias": leaf(attention),
        "weights.score": leaf(attention),
        "weights.gate": leaf(gate, units) if gate else None,
        "weights.gate_bias": leaf(gate) if gate else None,
        "weights.hidden": leaf(4 * units, units),
        "weights.context": leaf(4 * units, channels),
    }


def run(
    op: Callable[..., Any],
    given: dict[str, Tensor | None],
    wrap: Any = lambda x: x,
    counts: Sequence[int] = COUNTS,
    rows: Rows = ROWS,
) -> Any:
    """Call the op, or its reference, with the arguments of :func:`arguments`."""
    weights = RecurrenceWeights(*(v for k, v in given.items() if k.startswith("weights.")))
    gates, query, hidden, cell, keep, keys, grid = list(given.values())[:7]
    return op(gates, query, hidden, cell, keep, counts, wrap(keys), grid, rows, weights)


def in_bf16(given: dict[str, Tensor | None], **others: Any) -> Any:
    """What the op returns under autocast; None if no kernel computes it."""
    with torch.autocast("cpu", torch.bfloat16):
        return run(attention_recurrence, given, AdditiveKeys, **others)


def assert_as_in_double_precision(
    given: dict[str, Tensor | None], upstream: Callable[[Tensor], Tensor] | None = None
) -> None:
    """States and gradients are near those of the reference.

    Args:
        given: the arguments, as from :func:`arguments`.
        upstream: makes the gradients with respect to the results from random ones.
    """
    exact = {
        name: None if each is None else each.detach().double().requires_grad_(each.requires_grad)
        for name, each in given.items()
    }
    found, expected = in_bf16(given), run(reference.attention_recurrence, exact)
    assert [each.dtype for each in found] == [torch.float32] * 3
    generator = torch.Generator().manual_seed(1)
    above = [torch.randn(each.shape, generator=generator) for each in found]
    above = [upstream(each) for each in above] if upstream else above
    for ours, theirs in zip(found, expected, strict=True):
        assert relative_error(ours, theirs) < 0.01
    names = [name for name, each in given.items() if each is not None and each.requires_grad]
    got = torch.autograd.grad(found, [given[name] for name in names], above)
    wanted = torch.autograd.grad(
        expected, [exact[name] for name in names], [each.double() for each in above]
    )
    for name, ours, theirs in zip(names, got, wanted, strict=True):
        assert ours.dtype == given[name].dtype
        # Some sums of many terms are nearly zero.
        assert (ours - theirs).norm() < 0.02 * theirs.norm() + 0.005, name


@pytest.mark.parametrize("gate", [None, 1, 10])
@pytest.mark.parametrize("query", [False, True])
@pytest.mark.parametrize("keep", [False, True])
def test_states_and_gradients_are_the_references_in_double_precision(
    gate: int | None, query: bool, keep: bool
) -> None:
    assert_as_in_double_precision(arguments(gate, query, keep))


def elements_apart(x: Tensor) -> Tensor:
    return torch.stack([x, 1 - x], -1)[..., 0]


def rows_apart(x: Tensor) -> Tensor:
    return torch.cat([x, 1 - x], -1)[..., : x.shape[-1]]


def transposed(x: Tensor) -> Tensor:
    return x.mT.contiguous().mT if x.dim() > 1 else elements_apart(x)


def expanded(x: Tensor) -> Tensor:
    return x[:1, :1].expand(x.shape)  # as the gradient of a sum is


LAYOUTS = [elements_apart, rows_apart, transposed]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_where_the_arguments_lie_in_memory_does_not_matter(
    layout: Callable[[Tensor], Tensor],
) -> None:
    """The C functions read contiguous memory. The grid of an encoder, say, is a transposed map."""
    for name, each in arguments(10, True, True).items():
        assert each is not None
        given = arguments(10, True, True)
        given[name] = layout(each.detach()).requires_grad_(each.requires_grad)
        assert_as_in_double_precision(given)
    given = arguments(10, True, True)
    index = ROWS._replace(index=layout(ROWS.index[:, None])[:, 0])
    assert all(map(torch.equal, in_bf16(given, rows=index), in_bf16(given)))


@pytest.mark.parametrize("layout", [*LAYOUTS, expanded])
def test_where_the_gradients_of_the_results_lie_does_not_matter(
    layout: Callable[[Tensor], Tensor],
) -> None:
    assert_as_in_double_precision(arguments(10, True, True), layout)


def test_parameters_in_bf16_are_read_as_such() -> None:
    given = arguments(10, True, True)
    for name in [name for name in given if name.startswith("weights.")]:
        each = given[name]
        assert each is not None
        given[name] = each.detach().bfloat16().requires_grad_()
    assert_as_in_double_precision(given)


def test_one_result_alone_gives_the_gradient_of_some_arguments_alone() -> None:
    whole = arguments(10, True, True)
    names = [name for name, each in whole.items() if each is not None and each.requires_grad]
    for which in range(3):
        expected = torch.autograd.grad(
            in_bf16(whole)[which].square().sum(), [whole[name] for name in names]
        )
        for chosen in ("keys", "query", "hidden", "weights.score", "weights.context"):
            given = {
                name: each if name == chosen or each is None else each.detach()
                for name, each in whole.items()
            }
            (found,) = torch.autograd.grad(in_bf16(given)[which].square().sum(), [given[chosen]])
            assert torch.equal(found, expected[names.index(chosen)]), chosen


def test_without_gradients_the_states_are_the_same() -> None:
    given = arguments(10, True, True)
    with torch.no_grad():
        found = in_bf16(given)
    for ours, theirs in zip(found, in_bf16(given), strict=True):
        assert torch.equal(ours, theirs)
        assert not ours.requires_grad


def test_any_number_of_threads_and_a_repeated_backward_pass_give_the_same() -> None:
    given, threads = arguments(10, True, True, units=130), torch.get_num_threads()
    leaves = [each for each in given.values() if each is not None and each.requires_grad]
    found = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            words = in_bf16(given)
            loss = sum(each.square().sum() for each in words)
            gradients = [torch.autograd.grad(loss, leaves, retain_graph=True) for _ in range(2)]
            found += [[*words, *of_pass] for of_pass in gradients]
    finally:
        torch.set_num_threads(threads)
    for each in found[1:]:
        assert all(map(torch.equal, each, found[0]))


def test_a_second_derivative_is_refused() -> None:
    given = arguments(None, False, False)
    with pytest.raises(RuntimeError, match="use backend=torch"):
        torch.autograd.grad(in_bf16(given)[0].sum(), [given["hidden"]], create_graph=True)


class Ours(Tensor):
    """A tensor whose operations somebody may have changed."""


@pytest.mark.usefixtures("unchecked")
def test_what_no_kernel_computes() -> None:
    given = arguments(10, False, False)
    assert in_bf16(given) is not None
    assert run(attention_recurrence, given, AdditiveKeys) is None  # without autocast
    assert in_bf16(arguments(10, False, False, units=17)) is None
    assert in_bf16(given | {"hidden": given["hidden"][:6]}) is None
    assert in_bf16(given | {"cell": given["cell"].double()}) is None
    assert in_bf16(given | {"gates": given["gates"].float()}) is None
    assert in_bf16(given | {"grid": given["grid"].clone().requires_grad_()}) is None
    assert in_bf16(given | {"weights.query_bias": None}) is None
    assert in_bf16(given | {"weights.gate_bias": None}) is None
    assert in_bf16(given | {"weights.score": given["weights.score"].double()}) is None
    assert (
        in_bf16(given | {"weights.hidden": given["weights.hidden"].detach().as_subclass(Ours)})
        is None
    )
    assert in_bf16(arguments(2, False, False)) is None  # a gate for neither one nor each channel
    assert in_bf16(arguments(9, False, False, channels=9)) is None
    # Who needs the gradient with respect to a mask gets it from PyTorch.
    masked = arguments(10, False, True)
    masked["keep"].requires_grad_()
    assert in_bf16(masked) is None
    with torch.no_grad():
        assert in_bf16(masked) is not None
    for counts in ((7, 4, 7, 3, 1), (6, 6, 6, 4), (7, 7, 4, 4, 0), (8, 7, 4, 3)):
        assert in_bf16(given, counts=counts) is None
    assert in_bf16(given, rows=ROWS.head(6)) is None
    assert in_bf16(given, rows=ROWS._replace(images=5)) is None
    with use_backend("torch"):
        assert in_bf16(given) is None
    with FlopCounterMode(display=False):
        assert in_bf16(given) is None


@pytest.mark.parametrize(
    ("capabilities", "taken"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, True),
        ({"avx512_bf16": True, "amx_bf16": True}, False),  # where oneDNN's products are faster
        ({"avx2": True}, False),
    ],
)
def test_processors_for_which_it_was_not_measured(
    capabilities: dict[str, bool], taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "pays", PAYS)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    PAYS.cache_clear()
    try:
        assert (in_bf16(arguments(10, True, False)) is not None) == taken
    finally:
        PAYS.cache_clear()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tokens of each call of the op."""
    seen: list[int] = []
    forward = recurrence.AttentionRecurrence.forward

    def count(ctx: Any, kernels: Any, rows: Rows, counts: Any, *others: Any) -> Any:
        seen.append(sum(counts))
        return forward(ctx, kernels, rows, counts, *others)

    monkeypatch.setattr(recurrence.AttentionRecurrence, "forward", staticmethod(count))
    return seen


def assert_as_without_kernels(decoder: AttentionLSTM) -> None:
    """Loss and gradients in bfloat16 are near those of plain PyTorch in single precision."""

    def loss() -> Tensor:
        return decoder_loss(decoder, small_grid())

    with use_backend("torch"):
        expected, wanted = gradients_of(loss, trained(decoder))
    wanted = {name: None if each is None else each.clone() for name, each in wanted.items()}
    with torch.autocast("cpu", torch.bfloat16):
        found, got = gradients_of(loss, trained(decoder))
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.0)
    for name, exact in wanted.items():
        ours = got[name]
        if exact is None or ours is None:
            assert exact is ours is None, name
        else:
            # The norm of the smallest gradients is that of their rounding errors.
            assert (ours - exact).norm() < 0.05 * exact.norm() + 0.01, name


@pytest.mark.parametrize("gate", ["scalar", "channel", "none"])
@pytest.mark.parametrize("word_query", [True, False])
def test_a_model_that_nobody_changed_uses_it(gate: str, word_query: bool, calls: list[int]) -> None:
    assert_as_without_kernels(small_decoder(gate=gate, word_query=word_query))
    assert calls == [TOKEN_COUNT]


def test_recurrent_dropout_has_the_same_mask_either_way(calls: list[int]) -> None:
    decoder, found = small_decoder(recurrent_dropout=0.5), []
    for _ in range(2):
        torch.manual_seed(7)
        with torch.autocast("cpu", torch.bfloat16):
            found.append(decoder(small_grid(), TOKENS).logits)
        decoder.gate.register_forward_hook(lambda *_: None)
    assert len(calls) == 1
    assert relative_error(found[1], found[0]) < 0.01
    torch.manual_seed(8)
    with torch.autocast("cpu", torch.bfloat16):
        assert relative_error(decoder(small_grid(), TOKENS).logits, found[0]) > 0.05


class AsksTheWord(AttentionLSTM):
    """Adds to the query without ``word_query``."""

    share = 1.0

    def word_inputs(self, embedded: Tensor) -> dict[str, Tensor]:
        inputs = super().word_inputs(embedded)
        query = self.share * embedded[:, :1].expand(-1, self.attention.query.out_features)
        return inputs | {"query": query.to(inputs["gates"].dtype)}


def test_what_words_add_to_the_query_is_added(calls: list[int]) -> None:
    decoder = small_decoder(word_query=False)
    decoder.__class__ = AsksTheWord
    assert_as_without_kernels(decoder)
    assert calls == [TOKEN_COUNT]
    plain = decoder.eval()(small_grid(), TOKENS).attention
    decoder.share = 20.0
    assert (decoder(small_grid(), TOKENS).attention - plain).abs().max() > 1e-3


class OtherStep(AttentionLSTM):
    def recurrent_step(self, *args: Any) -> dict[str, Tensor]:
        state = super().recurrent_step(*args)
        return state | {"hidden": 0.5 * state["hidden"]}


class OtherScores(AdditiveAttention):
    def forward(self, query: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
        return super().forward(2 * query, *others)


def scale_output(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return 1.5 * output


def hooked(name: str) -> Callable[[AttentionLSTM], None]:
    def change(decoder: AttentionLSTM) -> None:
        decoder.get_submodule(name).register_forward_hook(scale_output)

    return change


def lora(name: str, kind: Any) -> Callable[[AttentionLSTM], None]:
    return lambda decoder: replace(decoder, name, kind(decoder.get_submodule(name)))


def other_step(decoder: AttentionLSTM) -> None:
    decoder.__class__ = OtherStep


def step_of_the_object(decoder: AttentionLSTM) -> None:
    step = decoder.recurrent_step
    decoder.recurrent_step = lambda *args: checkpoint(step, *args, use_reentrant=False)


def attend_of_the_object(decoder: AttentionLSTM) -> None:
    attend = decoder.attend
    decoder.attend = lambda query, *others: attend(2 * query, *others)


def other_attention(decoder: AttentionLSTM) -> None:
    decoder.attention.__class__ = OtherScores


def forward_of_a_layer(decoder: AttentionLSTM) -> None:
    forward = decoder.hidden_gates.forward
    decoder.hidden_gates.forward = lambda x: 0.5 * forward(x)


def bias_of_a_layer(decoder: AttentionLSTM) -> None:
    layer = nn.Linear(decoder.hidden_dim, 4 * decoder.hidden_dim)
    layer.weight = decoder.hidden_gates.weight
    decoder.hidden_gates = layer


def bias_of_another_layer(decoder: AttentionLSTM) -> None:
    decoder.context_gates.bias = nn.Parameter(torch.ones(4 * decoder.hidden_dim))


def other_read_out(decoder: AttentionLSTM) -> None:
    read_out = decoder.read_out

    def halved(*args: Any) -> dict[str, Tensor]:
        words = read_out(*args)
        return words | {"hidden": 0.5 * words["hidden"]}

    decoder.read_out = halved


def pre_hook(decoder: AttentionLSTM) -> None:
    decoder.gate.register_forward_pre_hook(lambda module, args: (2 * args[0],))


def backward_pre_hook(decoder: AttentionLSTM) -> None:
    decoder.hidden_gates.register_full_backward_pre_hook(lambda module, grads: (2 * grads[0],))


def compiled_layer(decoder: AttentionLSTM) -> None:
    """As ``decoder.gate.compile()`` does; what is compiled may be anything."""
    layer = decoder.gate
    layer._compiled_call_impl = lambda x: 1.5 * layer.forward(x)


def no_bias_of_a_layer(decoder: AttentionLSTM) -> None:
    decoder.attention.query.bias = None


def normalised(decoder: AttentionLSTM) -> None:
    weight_norm(decoder.context_gates)


def backward_hook(decoder: AttentionLSTM) -> None:
    decoder.context_gates.register_full_backward_hook(lambda module, inputs, outputs: None)


CHANGES: list[Callable[[AttentionLSTM], None]] = [
    other_step, step_of_the_object, attend_of_the_object, other_attention, forward_of_a_layer,
    bias_of_a_layer, bias_of_another_layer, no_bias_of_a_layer, normalised, other_read_out,
    pre_hook, backward_hook, backward_pre_hook, compiled_layer,
]  # fmt: skip
LAYERS = ["attention.query", "gate", "hidden_gates", "context_gates"]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_a_model_that_somebody_changed_is_computed_word_by_word(
    change: Callable[[AttentionLSTM], None], calls: list[int]
) -> None:
    decoder = small_decoder()
    change(decoder)
    assert_as_without_kernels(decoder)
    assert calls == []


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("kind", [LoRALinear, LoRAModule, None])
def test_other_layers_and_hooks_are_called(name: str, kind: Any, calls: list[int]) -> None:
    decoder = small_decoder()
    (hooked(name) if kind is None else lora(name, kind))(decoder)
    assert_as_without_kernels(decoder)
    assert calls == []


def test_a_hook_of_the_attention_and_one_of_all_modules_are_called(calls: list[int]) -> None:
    decoder, seen = small_decoder(), []
    decoder.attention.register_forward_hook(lambda *_: seen.append("attention"))
    assert_as_without_kernels(decoder)
    decoder = small_decoder()
    handle = nn.modules.module.register_module_forward_hook(lambda *_: seen.append("any"))
    try:
        assert_as_without_kernels(decoder)
    finally:
        handle.remove()
    assert {"attention", "any"} == set(seen)
    assert calls == []


@pytest.mark.parametrize("name", [name for name, _ in small_decoder().named_parameters()])
@pytest.mark.parametrize("others", [False, True], ids=["alone frozen", "alone trained"])
def test_frozen_parts_in_bf16(name: str, others: bool, calls: list[int]) -> None:
    decoder = small_decoder()
    for each, parameter in decoder.named_parameters():
        parameter.requires_grad_((each == name) == others)
    assert_as_without_kernels(decoder)
    assert calls == [TOKEN_COUNT]


def test_a_weight_that_another_computation_makes(calls: list[int]) -> None:
    """As torch.func.functional_call puts it in the place of a parameter."""
    decoder = small_decoder()
    scale = torch.ones((), requires_grad=True)
    found = []
    for autocast in (True, False):
        parameters = {name: scale * each.detach() for name, each in decoder.named_parameters()}
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = torch.func.functional_call(decoder, parameters, (small_grid(), TOKENS))
        loss = output.token_log_probs().sum()
        found.append(torch.autograd.grad(loss, [scale])[0])
    torch.testing.assert_close(found[0], found[1], rtol=0.03, atol=0.0)
    assert calls == [TOKEN_COUNT]


def test_a_trained_grid_and_other_decoders_go_word_by_word(calls: list[int]) -> None:
    grid = small_grid().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        decoder_loss(small_decoder(), grid).backward()
        for kind in (HardAttentionLSTM, AdaptiveLSTM):
            decoder = kind(9, 6, hidden_dim=6, embed_dim=6, attention_dim=6)
            decoder_loss(decoder, small_grid()).backward()
    assert grid.grad is not None
    assert calls == []
