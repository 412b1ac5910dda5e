"""A training step's loss and gradients as one CUDA graph for each shape that batches have.

A step of a recurrence is hundreds of small pieces of work for a GPU, and Python takes longer to ask
for them than the GPU takes to do them. A graph asks for all of them at once. It is recorded once a
shape and then replayed with other numbers in the same places.

A replay repeats operations, not Python. Hence a graph is recorded only where

* the classes of the objective, of the decoder and of all their parts declare that what they compute
  depends on shapes and plain attributes alone (``static = True``, not inherited), and
* no part has a hook, which would be called at the recording only;

and it is replayed only while every plain attribute (a number, a string) of every part has the value
that it had at the recording. A probability or a temperature that a callback anneals is thus seen,
whether it is a buffer or a Python number.
"""

from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from captioning.support.errors import CaptioningError

PLAIN = (bool, int, float, str, type(None))


def can_capture(device: torch.device) -> bool:
    """Whether graphs can be recorded on a device."""
    return device.type == "cuda"


class LossGraphs:
    """Computes losses; from the second batch of a shape on by a graph, where that is allowed.

    The gradients of all graphs lie in one place until the next call. Copies hold no graph.

    Args:
        objective: called with the decoder and a batch; returns the ``loss`` and its parts.
        decoder: the model.
    """

    def __init__(self, objective: nn.Module, decoder: nn.Module) -> None:
        self._step = _Step(objective, decoder)
        self._graphs: dict[Hashable, _Graph] = {}
        self._seen: set[Hashable] = set()
        self._gradients: dict[str, Tensor] = {}
        self._pool: Any = None
        self.calls = 0

    def __reduce__(self) -> tuple[type["LossGraphs"], tuple[nn.Module, nn.Module]]:
        # What copies and pickles are made of.
        return LossGraphs, (self._step.objective, self._step.decoder)

    def __len__(self) -> int:
        """The number of graphs."""
        return len(self._graphs)

    def __call__(self, batch: Any) -> dict[str, Tensor]:
        """What ``objective(decoder, batch)`` returns; ``loss`` has the gradients of all parameters.

        Args:
            batch: a named tuple with ``images`` (where the model is) and ``tokens`` (anywhere).

        Raises:
            CaptioningError: something is done that no graph can record.
        """
        if not can_capture(batch.images.device) or not self._step.is_static():
            return self._step(batch)
        self.calls += 1
        batch = batch._replace(tokens=batch.tokens.to(batch.images.device, non_blocking=True))
        parameters = self._step.trained_parameters()
        key = self._key(batch, parameters)
        if key not in self._seen:  # compiles, allocates and chooses what a graph then takes over
            self._seen.add(key)
            return self._step(batch)
        if key not in self._graphs:
            self._graphs[key] = self._record(batch, parameters)
        parts = self._graphs[key](batch)
        gradients = [self._gradients[name] for name in parameters]
        loss = _Replayed.apply(parts["loss"], gradients, self, *parameters.values())
        return parts | {"loss": loss}

    def _key(self, batch: Any, parameters: dict[str, nn.Parameter]) -> Hashable:
        """All that a graph depends on besides the numbers in its inputs."""
        device = batch.images.device.type
        return (
            batch.images.shape,
            batch.images.dtype,
            batch.tokens.shape,
            (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)),
            tuple((name, each.data_ptr()) for name, each in parameters.items()),
            self._step.plain_attributes(),
        )

    def _record(self, batch: Any, parameters: dict[str, nn.Parameter]) -> "_Graph":
        for name, parameter in parameters.items():
            if name not in self._gradients:
                self._gradients[name] = torch.empty_like(parameter)
        if self._pool is None and batch.images.is_cuda:
            self._pool = torch.cuda.graph_pool_handle()
        try:
            return _Graph(self._step, batch, parameters, self._gradients, self._pool)
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0]
            raise CaptioningError(
                f"The loss cannot be recorded as a CUDA graph ({reason}): remove `static = True` "
                "from what is new in it, or use backend=torch."
            ) from error


class _Step(nn.Module):
    """Decoder and objective as one module."""

    def __init__(self, objective: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.objective, self.decoder = objective, decoder

    def forward(self, batch: Any) -> dict[str, Tensor]:
        parts: dict[str, Tensor] = self.objective(self.decoder, batch)
        return parts

    def parts(self) -> list[nn.Module]:
        """All modules but this one."""
        return [module for module in self.modules() if module is not self]

    def is_static(self) -> bool:
        """Whether a graph of the step stays right; see the head of this file."""
        return all(
            (type(part).__module__.startswith("torch.") or vars(type(part)).get("static", False))
            and not (part._forward_hooks or part._forward_pre_hooks)
            and not (part._backward_hooks or part._backward_pre_hooks)
            for part in self.parts()
        )

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that get gradients."""
        return {name: each for name, each in self.named_parameters() if each.requires_grad}

    def plain_attributes(self) -> Hashable:
        """The plain attributes of all parts, their training modes among them."""
        return tuple(
            (name, value)
            for part in self.parts()
            for name, value in vars(part).items()
            if isinstance(value, PLAIN)
        )


class _Graph:
    """The graph of one key: where it reads, and where its results are."""

    def __init__(
        self,
        step: _Step,
        batch: Any,
        parameters: dict[str, nn.Parameter],
        gradients: dict[str, Tensor],
        pool: Any,
    ) -> None:
        self.batch = batch._replace(
            images=batch.images.clone(), tokens=batch.tokens.clone(), ids=[]
        )
        self.parts: dict[str, Tensor] = {}

        def work() -> None:
            # With leaves of its own: autograd may know the parameters from another stream.
            leaves = {name: each.detach().requires_grad_() for name, each in parameters.items()}
            parts = functional_call(step, leaves, (self.batch,))
            found = torch.autograd.grad(parts["loss"], list(leaves.values()), allow_unused=True)
            for name, gradient in zip(leaves, found, strict=True):
                gradients[name].zero_() if gradient is None else gradients[name].copy_(gradient)
            self.parts = {name: value.detach() for name, value in parts.items()}

        self.replay = capture(work, pool)

    def __call__(self, batch: Any) -> dict[str, Tensor]:
        self.batch.images.copy_(batch.images)
        self.batch.tokens.copy_(batch.tokens)
        self.replay()
        return {name: value.clone() for name, value in self.parts.items()}


def capture(work: Callable[[], None], pool: Any) -> Callable[[], None]:
    """Record what ``work`` asks of the GPU, and return what does it again.

    Raises:
        RuntimeError: something cannot be recorded.
    """
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    dtype, enabled = torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda")
    with (
        torch.cuda.stream(stream),
        # A weight that autocast had cast before the recording would never be cast again.
        torch.autocast("cuda", dtype, enabled=enabled, cache_enabled=False),
    ):
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            work()
        except BaseException:
            with suppress(RuntimeError):  # of a recording that has failed already
                graph.capture_end()
            raise
        graph.capture_end()
    torch.cuda.current_stream().wait_stream(stream)
    return graph.replay


class _Replayed(torch.autograd.Function):
    """A loss whose gradients have been computed already."""

    @staticmethod
    def forward(
        ctx: Any, loss: Tensor, gradients: list[Tensor], owner: LossGraphs, *parameters: Tensor
    ) -> Tensor:
        ctx.gradients, ctx.owner, ctx.call = gradients, owner, owner.calls
        return loss.view_as(loss)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.call != ctx.owner.calls:
            raise RuntimeError("the gradients of this loss were overwritten by a later loss's")
        # New tensors: those of an optimiser must stay when the next step's are computed.
        return None, None, None, *torch._foreach_mul(ctx.gradients, grad_loss)
