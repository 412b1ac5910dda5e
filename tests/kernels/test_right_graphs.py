"""Losses by a CUDA graph are those without, whatever changes between steps.

On the CPU a stand-in for ``capture`` does what a graph does: it keeps the operations with the
tensors and numbers that they had, and repeats them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from right_support import CHANNELS, LOCATIONS, WORDS, small_decoder
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

from captioning.kernels import cuda_graphs
from captioning.kernels.backend import use_backend
from captioning.kernels.cuda_graphs import LossGraphs
from captioning.models.attention.additive import AdditiveAttention
from captioning.models.attention.base import Memory
from captioning.models.decoders import recurrent, transformer
from captioning.models.decoders.attn_lstm import AttentionLSTM
from captioning.models.decoders.base import Decoder
from captioning.models.decoders.packing import _pack_all
from captioning.models.decoders.transformer import TransformerDecoder
from captioning.objectives import CrossEntropy
from captioning.support.errors import CaptioningError


class Batch(NamedTuple):
    """What an objective needs of a batch, as in :mod:`captioning.data.datamodule`."""

    images: Tensor
    tokens: Tensor
    ids: list[str]

    @property
    def grid(self) -> Tensor:
        return self.images


class Recorder(TorchDispatchMode):
    """Keeps what it is asked for; afterwards every tensor that was there before is as it was."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.new: set[int] = set()
        self.before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        masks = (
            [each for each in args[1] or [] if each is not None and each.dtype == torch.bool]
            if func is torch.ops.aten.index.Tensor
            else []
        )
        dynamic = (
            torch.Tag.dynamic_output_shape in func.tags and func is not torch.ops.aten.index.Tensor
        )
        if masks or dynamic or torch.Tag.data_dependent_output in func.tags:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        kwargs = kwargs or {}
        for value, argument in zip([*args], func._schema.arguments, strict=False):
            written = argument.alias_info is not None and argument.alias_info.is_write
            if written and isinstance(value, Tensor):
                place = value.untyped_storage().data_ptr()
                if place not in self.new and place not in self.before:
                    self.before[place] = value, value.detach().clone()
        out = func(*args, **kwargs)
        aliases = [result.alias_info for result in func._schema.returns]
        if all(alias is None for alias in aliases):
            for each in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(each, Tensor):
                    self.new.add(each.untyped_storage().data_ptr())
        self.calls.append((func, args, kwargs, out))
        return out


class Stand:
    """Replaces ``capture``; counts recordings and replays."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def capture(self, work: Callable[[], None], pool: Any) -> Callable[[], None]:
        noise = torch.get_rng_state()
        with Recorder() as recorder:
            work()
        torch.set_rng_state(noise)
        for tensor, value in recorder.before.values():
            tensor.detach().copy_(value)
        self.recorded += 1

        @torch.no_grad()
        def replay() -> None:
            self.replayed += 1
            for func, args, kwargs, out in recorder.calls:
                aliases = [result.alias_info for result in func._schema.returns]
                if any(alias is not None and not alias.is_write for alias in aliases):
                    continue  # a view of memory that is written to anyway
                again = func(*args, **kwargs)
                if any(alias is not None for alias in aliases):
                    continue  # in place
                outs = out if isinstance(out, (tuple, list)) else (out,)
                agains = again if isinstance(again, (tuple, list)) else (again,)
                for old, new in zip(outs, agains, strict=True):
                    if isinstance(old, Tensor):
                        old.detach().copy_(new)

        return replay


@pytest.fixture
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A real GPU with real graphs, or the CPU with the stand-in."""
    if request.param == "cuda":
        stand, capture = Stand(), cuda_graphs.capture

        def counted(work: Callable[[], None], pool: Any) -> Callable[[], None]:
            replay = capture(work, pool)
            stand.recorded += 1

            def counted_replay() -> None:
                stand.replayed += 1
                replay()

            return counted_replay

        monkeypatch.setattr(cuda_graphs, "capture", counted)
        yield torch.device("cuda"), stand
        return
    stand = Stand()
    monkeypatch.setattr(cuda_graphs, "capture", stand.capture)
    monkeypatch.setattr(cuda_graphs, "can_capture", lambda device: True)
    for module in (recurrent, transformer):
        monkeypatch.setattr(module, "pack", _pack_all)  # as on a GPU, where shapes alone decide
    with use_backend("torch"):
        yield torch.device("cpu"), stand


on_each_device = pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)], indirect=True
)


def batch_of(seed: int, device: torch.device, length: int = 5) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(2, LOCATIONS, CHANNELS, generator=generator).to(device)
    tokens = torch.randint(3, WORDS, (2, 2, length), generator=generator)
    tokens[:, :, 0], tokens[:, :, -1], tokens[0, 1, -2:] = 1, 2, torch.tensor([2, 0])
    return Batch(images, tokens, ["one", "two"])


class Weighted(CrossEntropy):
    """Two terms, whose weight is learned; a moving baseline; and a number that may be annealed."""

    static = True

    def __init__(self) -> None:
        super().__init__(label_smoothing=0.1, attention_penalty=1.0)
        self.log_weight = nn.Parameter(torch.tensor(0.3))
        self.register_buffer("baseline", torch.zeros(()))
        self.register_buffer("anneal_buffer", torch.ones(()))
        self.anneal = 1.0

    def forward(self, decoder: Any, batch: Any) -> dict[str, Tensor]:
        parts = super().forward(decoder, batch)
        weight = self.log_weight.exp()
        loss = weight * parts["cross_entropy"] + parts["attention_term"] / weight
        with torch.no_grad():
            self.baseline.mul_(0.9).add_(0.1 * parts["cross_entropy"].detach())
        loss = loss - self.baseline * self.log_weight * self.anneal * self.anneal_buffer
        return {"loss": loss, "cross_entropy": parts["cross_entropy"]}


class Annealed(AdditiveAttention):
    """Attention with a number that may be annealed."""

    static = True

    def __init__(self, channels: int, query_dim: int, attention_dim: int) -> None:
        super().__init__(channels, query_dim, attention_dim)
        self.temperature = 1.0

    def forward(self, query: Tensor, memory: Memory, rows: Any) -> tuple[Tensor, Tensor]:
        weights = self.scores(rows.scatter(query), memory).float() / self.temperature
        weights = weights.softmax(-1)
        return rows.gather(weights), rows.gather(weights @ memory["grid"])


class Pair(NamedTuple):
    """The same model twice: with and without graphs."""

    graphs: LossGraphs
    objective: nn.Module
    decoder: Decoder
    optimizers: list[torch.optim.Optimizer]
    eager: tuple[nn.Module, Decoder]


def pair_of(device: torch.device, objective: type[nn.Module] = Weighted, **settings: Any) -> Pair:
    models = []
    for _ in range(2):
        decoder = small_decoder(**settings)
        torch.manual_seed(5)
        decoder.attention = Annealed(CHANNELS, 6, 6)
        models.append((objective().to(device), decoder.to(device)))
    optimizers = [
        torch.optim.AdamW([*one.parameters(), *other.parameters()], lr=0.05, weight_decay=0.1)
        for one, other in models
    ]
    (one, other), eager = models
    return Pair(LossGraphs(one, other), one, other, optimizers, eager)


def step(pair: Pair, batch: Batch, seed: int = 0) -> None:
    """A step of both, whose losses, parts, gradients and new weights must be the same."""
    found = []
    losses = (pair.graphs, lambda given: pair.eager[0](pair.eager[1], given))
    for compute, optimizer in zip(losses, pair.optimizers, strict=True):
        torch.manual_seed(seed)
        optimizer.zero_grad()
        parts = compute(batch)
        parts["loss"].backward()
        found.append({name: value.detach().clone() for name, value in parts.items()})
    ours = [*pair.objective.named_parameters(), *pair.decoder.named_parameters()]
    theirs = [*pair.eager[0].named_parameters(), *pair.eager[1].named_parameters()]
    for (name, one), (_, other) in zip(ours, theirs, strict=True):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, msg=lambda m, n=name: f"{n}: {m}")
    assert found[0].keys() == found[1].keys()
    for name, value in found[1].items():
        torch.testing.assert_close(found[0][name], value)
    for optimizer in pair.optimizers:
        optimizer.step()
    for (name, one), (_, other) in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, msg=lambda m, n=name: f"{n}: {m}")
    mine = [*pair.objective.named_buffers(), *pair.decoder.named_buffers()]
    others = [*pair.eager[0].named_buffers(), *pair.eager[1].named_buffers()]
    for (name, one), (_, other) in zip(mine, others, strict=True):
        torch.testing.assert_close(one, other, msg=lambda m, n=name: f"{n}: {m}")


def both(pair: Pair) -> list[tuple[nn.Module, AttentionLSTM]]:
    return [(pair.objective, pair.decoder), pair.eager]


@on_each_device
@pytest.mark.parametrize("tie", [False, True])
def test_steps_are_those_without_graphs(device: Any, tie: bool) -> None:
    """With an optimiser, a learned weight between two terms, and a moving baseline."""
    where, stand = device
    pair = pair_of(where, tie_embeddings=tie)
    for seed in range(5):
        step(pair, batch_of(seed, where))
        step(pair, batch_of(seed + 9, where, length=4))
    assert (stand.recorded, stand.replayed) == (2, 8)
    assert pair.objective.log_weight.grad.abs() > 0
    assert pair.objective.baseline > 0


@on_each_device
def test_steps_of_a_transformer_are_those_without_graphs(device: Any) -> None:
    on, stand = device
    models = []
    for _ in range(2):
        torch.manual_seed(5)
        decoder = TransformerDecoder(
            WORDS, CHANNELS, layers=2, heads=2, hidden_dim=6, feed_forward_dim=5, dropout=0.2,
            word_dropout=0.2,
        )  # fmt: skip
        models.append((Weighted().to(on), decoder.to(on)))
    optimizers = [
        torch.optim.SGD([*one.parameters(), *other.parameters()], lr=0.05) for one, other in models
    ]
    (objective, ours), eager = models
    pair = Pair(LossGraphs(objective, ours), objective, ours, optimizers, eager)
    for number in range(6):
        step(pair, batch_of(number, on, length=5 + number % 2), number)
    assert stand.recorded == 2
    assert stand.replayed == 4


@on_each_device
@pytest.mark.parametrize("what", ["objective", "buffer", "word dropout", "attention", "dropout"])
def test_an_annealed_number_is_seen(device: Any, what: str) -> None:
    where, stand = device
    # On a GPU a graph draws other random numbers than PyTorch does: 0 and 1 need none.
    pair = pair_of(where)
    for number, value in enumerate([0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0]):
        for objective, decoder in both(pair):
            if what == "objective":
                objective.anneal = 1.0 + value
            elif what == "buffer":
                objective.anneal_buffer.fill_(1.0 + value)
            elif what == "word dropout":
                decoder.word_dropout = value
            elif what == "attention":
                decoder.attention.temperature = 1.0 + 3 * value
            else:
                decoder.dropout.p = value
        step(pair, batch_of(number, where))
    assert stand.recorded == (1 if what == "buffer" else 2)
    assert stand.replayed >= 5


@on_each_device
def test_what_is_not_declared_static_is_never_recorded(device: Any) -> None:
    where, stand = device

    class Undeclared(Weighted):
        """Inherits all but the declaration."""

    pair = pair_of(where, Undeclared)
    for seed in range(4):
        step(pair, batch_of(seed, where))
    assert stand.recorded == 0


@on_each_device
@pytest.mark.parametrize("register", [
    "register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook",
    "register_full_backward_pre_hook",
])  # fmt: skip
def test_a_hook_is_called_at_every_step(device: Any, register: str) -> None:
    where, stand = device
    pair, calls = pair_of(where), []
    for seed in range(3):
        step(pair, batch_of(seed, where))
    recorded = stand.recorded
    for _, decoder in both(pair):
        getattr(decoder.hidden_gates, register)(lambda *arguments: calls.append(1))
    for seed in range(3):
        before = len(calls)
        step(pair, batch_of(seed, where))
        assert len(calls) - before == 2 * 4  # two models, four words
    assert stand.recorded == recorded == 1


@on_each_device
def test_a_forward_that_is_exchanged_is_not_recorded(device: Any) -> None:
    """As some libraries do, on the object and not in a class."""
    where, stand = device
    pair, scale = pair_of(where), [1.0]
    for _, decoder in both(pair):
        layer = decoder.hidden_gates
        layer.forward = lambda x, layer=layer: scale[0] * nn.functional.linear(x, layer.weight)
    for seed in range(4):
        scale[0] += 1
        step(pair, batch_of(seed, where))
    assert stand.recorded == 0


class Parametrized(nn.Module):
    """A parametrisation by a number that graphs may not freeze: it declares nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = [1.0]

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.scale[0]


@on_each_device
def test_a_parametrisation_of_ones_own_is_not_recorded(device: Any) -> None:
    where, stand = device
    pair = pair_of(where)
    parts = [Parametrized() for _ in range(2)]
    for (_, decoder), part in zip(both(pair), parts, strict=True):
        parametrize.register_parametrization(decoder.hidden_gates, "weight", part)
    pair.optimizers[:] = [
        torch.optim.SGD([*one.parameters(), *other.parameters()], lr=0.1)
        for one, other in both(pair)
    ]
    for seed in range(4):
        for part in parts:
            part.scale[0] += 0.5
        step(pair, batch_of(seed, where))
    assert stand.recorded == 0


@on_each_device
def test_a_class_with_a_parametrisation_must_still_be_static(device: Any) -> None:
    where, stand = device

    class Undeclared(Annealed):
        """Inherits all but the declaration."""

    pair = pair_of(where)
    for _, decoder in both(pair):
        torch.manual_seed(5)
        decoder.attention = Undeclared(CHANNELS, 6, 6).to(where)
        parametrize.register_parametrization(decoder.attention, "score", nn.Tanh())
    pair.optimizers[:] = [
        torch.optim.SGD([*one.parameters(), *other.parameters()], lr=0.1)
        for one, other in both(pair)
    ]
    for seed in range(4):
        step(pair, batch_of(seed, where))
    assert stand.recorded == 0


@on_each_device
def test_a_parameter_that_the_loss_does_not_use_gets_no_gradient(device: Any) -> None:
    """A gradient of zero would let the optimiser decay its weight."""
    where, stand = device
    pair = pair_of(where)
    for objective, _ in both(pair):
        objective.unused = nn.Parameter(torch.ones(3, device=where))
    pair.optimizers[:] = [
        torch.optim.AdamW([*one.parameters(), *other.parameters()], weight_decay=0.5)
        for one, other in both(pair)
    ]
    for seed in range(4):
        step(pair, batch_of(seed, where))
    assert pair.objective.unused.grad is None
    assert stand.replayed == 3


@on_each_device
@pytest.mark.parametrize("frozen", [True, False])
def test_weights_that_are_exchanged_are_seen(device: Any, frozen: bool) -> None:
    where, stand = device
    pair = pair_of(where)
    for _, decoder in both(pair):
        decoder.embedding.weight.requires_grad_(not frozen)
    for seed in range(3):
        step(pair, batch_of(seed, where))
    assert stand.replayed == 2
    for _, decoder in both(pair):
        new = decoder.embedding.weight.detach() * 2
        decoder.embedding.weight = nn.Parameter(new, requires_grad=not frozen)
    for seed in range(3):
        step(pair, batch_of(seed, where))


class Rebinding(Weighted):
    """Replaces its buffer at every step, where a graph would go on reading the first one."""

    static = True

    def forward(self, decoder: Any, batch: Any) -> dict[str, Tensor]:
        parts = CrossEntropy.forward(self, decoder, batch)
        self.baseline = 0.9 * self.baseline + 0.1 * parts["cross_entropy"].detach()
        loss = parts["loss"] * self.log_weight - self.baseline * self.log_weight
        return {"loss": loss}


@on_each_device
def test_a_buffer_that_is_replaced_is_right_or_refused(device: Any) -> None:
    where, _ = device
    pair = pair_of(where, Rebinding)
    try:
        for seed in range(4):
            step(pair, batch_of(seed, where))
    except CaptioningError as error:
        assert "baseline" in str(error)  # noqa: PT017


class TensorAttribute(Weighted):
    """Has a plain tensor as an attribute, which is neither parameter nor buffer."""

    static = True

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.tensor(1.0)
        self.weights = [1.0, 1.0]

    def forward(self, decoder: Any, batch: Any) -> dict[str, Tensor]:
        parts = super().forward(decoder, batch)
        scale = self.scale.to(parts["loss"].device) * self.weights[0]
        return parts | {"loss": parts["loss"] * scale}


@on_each_device
@pytest.mark.parametrize("what", ["tensor", "list"])
def test_a_tensor_or_a_list_that_is_annealed_is_seen(device: Any, what: str) -> None:
    where, _ = device
    pair = pair_of(where, TensorAttribute)
    for objective, _ in both(pair):
        objective.scale = objective.scale.to(where)
    for seed, value in enumerate([1.0, 1.0, 1.0, 3.0, 3.0, 3.0]):
        for objective, _ in both(pair):
            if what == "tensor":
                objective.scale = torch.tensor(value, device=where)
            else:
                objective.weights[0] = value
        step(pair, batch_of(seed, where))


@on_each_device
def test_without_gradients_nothing_is_recorded(device: Any) -> None:
    where, stand = device
    pair = pair_of(where)
    with torch.no_grad():
        losses = [pair.graphs(batch_of(0, where))["loss"] for _ in range(3)]
    assert losses[0].isfinite()
    assert stand.recorded == 0


@on_each_device
def test_a_loss_can_be_differentiated_twice_over_and_in_part(device: Any) -> None:
    where, stand = device
    pair = pair_of(where)
    for seed in range(2):
        step(pair, batch_of(seed, where))
    loss = pair.graphs(batch_of(3, where))["loss"]
    assert stand.replayed == 2
    weight = pair.decoder.hidden_gates.weight
    (once,) = torch.autograd.grad(loss, [weight], retain_graph=True)
    weight.grad = None
    (2 * loss).backward(retain_graph=True)
    loss.backward()
    torch.testing.assert_close(weight.grad, 3 * once)


@on_each_device
def test_gradients_of_two_batches_are_accumulated(device: Any) -> None:
    where, _ = device
    pair = pair_of(where)
    for seed in range(2):
        step(pair, batch_of(seed, where))
    for optimizer in pair.optimizers:
        optimizer.zero_grad()
    for seed in (7, 8):
        pair.graphs(batch_of(seed, where))["loss"].backward()
        pair.eager[0](pair.eager[1], batch_of(seed, where))["loss"].backward()
    torch.testing.assert_close(
        pair.decoder.hidden_gates.weight.grad, pair.eager[1].hidden_gates.weight.grad
    )


@on_each_device
def test_a_loss_whose_gradients_are_gone_is_refused(device: Any) -> None:
    where, _ = device
    pair = pair_of(where)
    for seed in range(2):
        step(pair, batch_of(seed, where))
    first = pair.graphs(batch_of(3, where))["loss"]
    second = pair.graphs(batch_of(4, where))["loss"]
    with pytest.raises(RuntimeError, match="overwritten"):
        (first + second).backward()


@on_each_device
def test_the_gradient_of_a_part_is_right_or_refused(device: Any) -> None:
    """Only the loss has gradients that were recorded."""
    where, _ = device
    pair = pair_of(where)
    for seed in range(2):
        step(pair, batch_of(seed, where))
    batch = batch_of(3, where)
    parts, expected = pair.graphs(batch), pair.eager[0](pair.eager[1], batch)
    weight, other = pair.decoder.hidden_gates.weight, pair.eager[1].hidden_gates.weight
    (wanted,) = torch.autograd.grad(expected["loss"] + expected["cross_entropy"], [other])
    try:
        (found,) = torch.autograd.grad(parts["loss"] + parts["cross_entropy"], [weight])
    except RuntimeError as error:
        assert "backend=torch" in str(error)  # noqa: PT017
    else:
        torch.testing.assert_close(found, wanted)


@on_each_device
def test_images_that_need_a_gradient_get_one(device: Any) -> None:
    where, stand = device
    pair = pair_of(where)
    for seed in range(4):
        batch = batch_of(seed, where)
        leaf = batch.images.clone().requires_grad_()
        pair.graphs(batch._replace(images=leaf))["loss"].backward()
        assert leaf.grad is not None
    assert stand.recorded == 0


@on_each_device
def test_what_cannot_be_recorded_is_refused_with_a_remedy(device: Any) -> None:
    where, _ = device

    class Reads(Weighted):
        static = True

        def forward(self, decoder: Any, batch: Any) -> dict[str, Tensor]:
            parts = super().forward(decoder, batch)
            return parts | {"loss": parts["loss"] * float(parts["loss"].detach())}

    pair = pair_of(where, Reads)
    step(pair, batch_of(0, where))
    with pytest.raises(CaptioningError, match="static = True"):
        pair.graphs(batch_of(1, where))


@on_each_device
def test_a_number_annealed_at_every_step_keeps_little(device: Any) -> None:
    """Nothing is recorded for a number that never recurs, and nothing large is kept of it."""
    where, stand = device
    pair = pair_of(where)
    for seed in range(5):
        for objective, _ in both(pair):
            objective.anneal = 1.0 + seed / 10
        step(pair, batch_of(seed, where))
    assert stand.recorded == 0


def test_the_number_of_graphs_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    stand = Stand()
    monkeypatch.setattr(cuda_graphs, "capture", stand.capture)
    monkeypatch.setattr(cuda_graphs, "can_capture", lambda device: True)
    monkeypatch.setattr(cuda_graphs, "MAX_GRAPHS", 2)
    monkeypatch.setattr(recurrent, "pack", _pack_all)
    with use_backend("torch"):
        pair = pair_of(torch.device("cpu"))
        for anneal in range(4):
            for objective, _ in both(pair):
                objective.anneal = float(anneal)
            for seed in range(3):
                step(pair, batch_of(seed, torch.device("cpu")))
    assert stand.recorded == 4
    assert len(pair.graphs) == 2
