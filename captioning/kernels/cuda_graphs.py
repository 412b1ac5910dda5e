"""The loss and gradients of a training step as a CUDA graph, one graph for each shape of batches.

A training step of a recurrent network is hundreds of small kernels, and Python takes longer to
launch them than the GPU takes to run them. A CUDA graph launches all of them at once. It is
recorded once for each shape, and then replayed with other values in the same memory.

A replay repeats the recorded operations without running Python. A graph is therefore recorded only
if

* the classes of the objective, of the decoder and of all their submodules declare that their
  operations depend only on shapes and plain attributes (``static = True``, which is not inherited),
  and
* no submodule has a hook, or a ``forward`` set on the instance, which would run at the recording
  only.

A graph is replayed only if every submodule has the same class, and every attribute (a number, a
string, a short list of these, the address of a tensor) has the same value as at the recording. If a
callback anneals a probability or a temperature, the change is therefore noticed, whether it is a
buffer or a Python number.
"""

from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize

from captioning.kernels.deferred import first_derivative_only
from captioning.support.errors import CaptioningError

PLAIN = (bool, int, float, str, type(None))

MAX_GRAPHS = 64
"""Number of graphs that are kept. Captions have about twenty lengths; if a number is annealed,
every epoch would otherwise leave that many unused graphs behind."""

MAX_SEEN = 10_000
"""Number of keys that are remembered after their first step, to record a graph at the second
one."""

MAX_ITEMS = 32
"""Length of the longest list whose items are compared; a longer list is assumed to be constant."""

MODULE_INTERNALS = frozenset(vars(nn.Module())) - {"training", "_parameters", "_buffers"}


def can_capture(device: torch.device) -> bool:
    """Whether graphs can be recorded on a device."""
    return device.type == "cuda"


class LossGraphs:
    """Computes losses, from the second batch of a shape on by a CUDA graph, if that is possible.

    All graphs write their gradients into the same memory, which the next call overwrites. Copies of
    this object have no graphs.

    Args:
        objective: called with the decoder and a batch; returns the ``loss`` and its parts.
        decoder: the model.
    """

    def __init__(self, objective: nn.Module, decoder: nn.Module) -> None:
        self._step = _Step(objective, decoder)
        self._graphs: dict[Hashable, _Graph] = {}
        self._seen: set[int] = set()
        self._gradients: dict[Hashable, Tensor] = {}
        self._pool: Any = None
        self.calls = 0

    def __reduce__(self) -> tuple[type["LossGraphs"], tuple[nn.Module, nn.Module]]:
        # Copies and pickles contain the modules only.
        return LossGraphs, (self._step.objective, self._step.decoder)

    def are_of(self, objective: nn.Module, decoder: nn.Module) -> bool:
        """Whether this object computes the losses of these two modules."""
        return self._step.objective is objective and self._step.decoder is decoder

    def __len__(self) -> int:
        """The number of graphs."""
        return len(self._graphs)

    def __call__(self, batch: Any) -> dict[str, Tensor]:
        """Compute ``objective(decoder, batch)``; ``loss`` can be backpropagated to all parameters.

        Args:
            batch: a named tuple with ``images`` (on the model's device) and ``tokens`` (on any).

        Raises:
            CaptioningError: the loss has an operation that cannot be recorded.
        """
        parameters = self._step.trained_parameters()
        losses: dict[str, Tensor]
        if not (parameters and self._can_record(batch) and self._step.is_static()):
            losses = self._step(batch)
            return losses
        batch = batch._replace(tokens=batch.tokens.to(batch.images.device, non_blocking=True))
        key = self._key(batch)
        # The first step of a shape compiles kernels and allocates workspaces, and is not recorded.
        if hash(key) not in self._seen:
            if len(self._seen) >= MAX_SEEN:
                self._seen.clear()
            self._seen.add(hash(key))
            losses = self._step(batch)
            return losses
        graph = self._graphs.get(key)
        if graph is None:
            graph = self._graphs[key] = self._record(batch, parameters)
            if len(self._graphs) > MAX_GRAPHS:
                del self._graphs[next(iter(self._graphs))]
        self.calls += 1
        parts = graph(batch)
        for name in graph.differentiable:
            parts[name] = _Part.apply(parts[name], *parameters.values())
        gradients = graph.gradients
        parts["loss"] = _Replayed.apply(parts["loss"], gradients, self, *parameters.values())
        return parts

    def _can_record(self, batch: Any) -> bool:
        """Whether a graph can represent this batch, and the loss needs gradients."""
        return (
            can_capture(batch.images.device)
            and torch.is_grad_enabled()
            and not batch.images.requires_grad
            and set(batch._fields) <= {"images", "tokens", "ids", "views"}
        )

    def _key(self, batch: Any) -> Hashable:
        """Everything that a graph depends on, except the values of its inputs."""
        device = batch.images.device.type
        return (
            batch.images.shape,
            batch.images.dtype,
            batch.tokens.shape,
            (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)),
            self._step.attributes(),
        )

    def _record(self, batch: Any, parameters: dict[str, nn.Parameter]) -> "_Graph":
        places: dict[str, Tensor] = {}
        for name, each in parameters.items():
            place = name, each.shape, each.dtype, each.device
            if place not in self._gradients:
                self._gradients[place] = torch.empty_like(each)
            places[name] = self._gradients[place]
        buffers = dict(self._step.named_buffers())
        if self._pool is None and batch.images.is_cuda:
            self._pool = torch.cuda.graph_pool_handle()
        try:
            graph = _Graph(self._step, batch, parameters, places, self._pool)
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0]
            raise CaptioningError(
                f"The loss cannot be recorded as a CUDA graph ({reason}): remove `static = True` "
                "from what is new in it, or use backend=torch."
            ) from error
        for name, buffer in buffers.items():
            if self._step.get_buffer(name) is not buffer:
                self._step.restore_buffers(buffers)
                raise CaptioningError(
                    f"A CUDA graph cannot follow the buffer {name}, which is replaced at each "
                    "step: change it in place (`buffer.copy_(...)`), or use backend=torch."
                )
        return graph


class _Step(nn.Module):
    """Decoder and objective combined into one module."""

    def __init__(self, objective: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.objective, self.decoder = objective, decoder

    def forward(self, batch: Any) -> dict[str, Tensor]:
        parts: dict[str, Tensor] = self.objective(self.decoder, batch)
        return parts

    def parts(self) -> list[nn.Module]:
        """All submodules."""
        return [module for module in self.modules() if module is not self]

    def is_static(self) -> bool:
        """Whether a graph of the step stays valid; see the docstring of this module."""
        return all(
            is_declared_static(part)
            and "forward" not in vars(part)
            and not (part._forward_hooks or part._forward_pre_hooks)
            and not (part._backward_hooks or part._backward_pre_hooks)
            for part in self.parts()
        )

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that require gradients."""
        return {name: each for name, each in self.named_parameters() if each.requires_grad}

    def attributes(self) -> Hashable:
        """The classes and attributes of all submodules, including their training modes."""
        return tuple(
            (
                type(part),
                *(
                    (name, comparable(value))
                    for name, value in vars(part).items()
                    if name not in MODULE_INTERNALS
                ),
            )
            for part in self.parts()
        )

    def restore_buffers(self, buffers: dict[str, Tensor]) -> None:
        """Register the given buffers again, under their names."""
        for name, buffer in buffers.items():
            owner, _, child = name.rpartition(".")
            self.get_submodule(owner)._buffers[child] = buffer


def is_declared_static(part: nn.Module) -> bool:
    """Whether a module is PyTorch's own, or its class has ``static = True``."""
    kind = type(part)
    if parametrize.is_parametrized(part):  # its class is derived from the original one
        kind = kind.__bases__[0]
    return kind.__module__.startswith("torch.") or bool(vars(kind).get("static", False))


def comparable(value: object) -> Hashable:
    """The part of an attribute on which a graph depends; None if it is assumed to be constant."""
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, Tensor):
        return value.data_ptr(), value.shape, value.dtype, value.requires_grad
    if isinstance(value, list | tuple) and len(value) <= MAX_ITEMS:
        return tuple(comparable(each) for each in value)
    if isinstance(value, dict) and len(value) <= MAX_ITEMS:
        return tuple((name, comparable(each)) for name, each in value.items())
    return None


class _Graph:
    """The graph of one key, with its input and output tensors.

    Attributes:
        gradients: the gradient with respect to each parameter; None for parameters on which the
            loss does not depend.
        differentiable: the names of the parts, except the loss itself, that require gradients.
    """

    def __init__(
        self,
        step: _Step,
        batch: Any,
        parameters: dict[str, nn.Parameter],
        places: dict[str, Tensor],
        pool: Any,
    ) -> None:
        self.batch = batch._replace(
            images=batch.images.clone(), tokens=batch.tokens.clone(), ids=[]
        )
        self.parts: dict[str, Tensor] = {}
        self.gradients: list[Tensor | None] = []
        self.differentiable: list[str] = []

        def work() -> None:
            # New leaves, because autograd may have used the parameters on another stream.
            leaves = {name: each.detach().requires_grad_() for name, each in parameters.items()}
            parts = functional_call(step, leaves, (self.batch,))
            found = torch.autograd.grad(parts["loss"], list(leaves.values()), allow_unused=True)
            self.gradients = [
                None if gradient is None else places[name].copy_(gradient)
                for name, gradient in zip(leaves, found, strict=True)
            ]
            self.differentiable = [
                name for name, value in parts.items() if value.requires_grad and name != "loss"
            ]
            self.parts = {name: value.detach() for name, value in parts.items()}

        self.replay = capture(work, pool)

    def __call__(self, batch: Any) -> dict[str, Tensor]:
        self.batch.images.copy_(batch.images)
        self.batch.tokens.copy_(batch.tokens)
        self.replay()
        return {name: value.clone() for name, value in self.parts.items()}


def capture(work: Callable[[], None], pool: Any) -> Callable[[], None]:
    """Record the GPU operations of ``work``, and return a function that replays them.

    Raises:
        RuntimeError: an operation cannot be recorded.
    """
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    dtype, enabled = torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda")
    with (
        torch.cuda.stream(stream),
        # No cache: a replay would not repeat the cast of a weight that was cached before.
        torch.autocast("cuda", dtype, enabled=enabled, cache_enabled=False),
    ):
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            work()
        except BaseException:
            with suppress(RuntimeError):  # ending a recording that has failed raises again
                graph.capture_end()
            raise
        graph.capture_end()
    torch.cuda.current_stream().wait_stream(stream)
    return graph.replay


class _Replayed(torch.autograd.Function):
    """A loss whose gradients a graph has computed already; the backward pass returns them."""

    @staticmethod
    def forward(
        ctx: Any,
        loss: Tensor,
        gradients: list[Tensor | None],
        owner: LossGraphs,
        *parameters: Tensor,
    ) -> Tensor:
        ctx.gradients, ctx.owner, ctx.call = gradients, owner, owner.calls
        return loss.view_as(loss)

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.call != ctx.owner.calls:
            raise RuntimeError("the gradients of this loss were overwritten by a later loss's")
        # New tensors, because the next replay overwrites the graph's own.
        found = iter(
            torch._foreach_mul([each for each in ctx.gradients if each is not None], grad_loss)
        )
        return None, None, None, *(None if each is None else next(found) for each in ctx.gradients)


class _Part(torch.autograd.Function):
    """A part of a loss that a graph has computed; backpropagating it raises an error."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *parameters: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        raise RuntimeError(
            "with CUDA graphs only the loss has gradients, not a part of it: add the parts up in "
            "the objective's forward, or use backend=torch"
        )
