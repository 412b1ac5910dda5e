"""A training step's loss and gradients as one CUDA graph, for each shape that batches have.

A step of the recurrence is hundreds of small pieces of work for a GPU, and Python takes longer to
ask for them than the GPU to do them. A graph asks for all at once. It is recorded from what Python
does, once a shape, and then replayed on other numbers in the same places.
"""

from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from captioning.support.errors import CaptioningError

Objective = Callable[[Any], dict[str, Tensor]]
"""From what a model predicts, the ``loss`` and its parts."""


class LossGraphs:
    """Computes the loss of a model; on a GPU, from the second batch of a shape on by a graph.

    What is computed must be decided by shapes alone, and by nothing that the GPU has computed. The
    gradients lie in one place for all graphs, until the next call. Copies hold no graph.
    """

    def __init__(self) -> None:
        self._graphs: dict[Hashable, _Graph] = {}
        self._met: set[Hashable] = set()
        self._parameters: dict[str, nn.Parameter] = {}
        self._gradients: list[Tensor] = []
        self._pool: Any = None
        self.calls = 0

    def __getstate__(self) -> dict[str, Any]:
        return LossGraphs().__dict__

    def __len__(self) -> int:
        """The number of graphs."""
        return len(self._graphs)

    def __call__(
        self,
        model: nn.Module,
        objective: Objective,
        grid: Float[Tensor, "images locations channels"],
        tokens: Int[Tensor, "images captions length"],
    ) -> dict[str, Tensor]:
        """What ``objective(model(grid, tokens))`` gives, the gradients of ``loss`` included.

        Args:
            model: always the same; a graph reads its parameters where they were in memory when it
                was recorded, and another one is recorded if they have moved.
            objective: always the same.
            grid: where the model is.
            tokens: anywhere.

        Raises:
            CaptioningError: something is done that no graph can record.
        """
        if not grid.is_cuda:
            return objective(model(grid, tokens))
        self.calls += 1
        tokens = tokens.to(grid.device, non_blocking=True)
        if not self._parameters:
            self._parameters = dict(model.named_parameters())
        parameters = self._parameters
        autocast = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        places = tuple(parameter.data_ptr() for parameter in parameters.values())
        key = grid.shape, grid.dtype, tokens.shape, model.training, autocast, places
        if key not in self._met:  # compiles, allocates and chooses what a graph then takes over
            self._met.add(key)
            return objective(model(grid, tokens))
        if key not in self._graphs:
            if not self._gradients:
                self._gradients = [torch.empty_like(each) for each in parameters.values()]
                self._pool = torch.cuda.graph_pool_handle()
            inputs = torch.empty_like(grid), torch.empty_like(tokens)
            graph = _Graph(self._gradients, *inputs)
            try:
                graph.record(model, objective, parameters, self._pool)
            except RuntimeError as error:
                reason = str(error).strip().partition("\n")[0]
                raise CaptioningError(
                    f"The loss cannot be recorded as a CUDA graph ({reason}): use compile=false."
                ) from error
            self._graphs[key] = graph
        parts = self._graphs[key](grid, tokens)
        loss = _Replayed.apply(parts["loss"], self._gradients, self, *parameters.values())
        return parts | {"loss": loss}


class _Graph:
    """One shape's: where it reads, what it does, where the results are."""

    def __init__(self, gradients: list[Tensor], grid: Tensor, tokens: Tensor) -> None:
        self.gradients, self.grid, self.tokens = gradients, grid, tokens
        self.parts: dict[str, Tensor] = {}
        self.graph = torch.cuda.CUDAGraph()

    def record(
        self,
        model: nn.Module,
        objective: Objective,
        parameters: Mapping[str, nn.Parameter],
        pool: Any,
    ) -> None:
        """Do everything once, for the record alone.

        Raises:
            RuntimeError: something cannot be recorded.
        """
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        dtype, enabled = torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda")
        with (
            torch.cuda.stream(stream),
            # A weight that autocast had cast before would never be cast again.
            torch.autocast("cuda", dtype, enabled=enabled, cache_enabled=False),
        ):
            self.graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                # Of tensors of its own: autograd may know the parameters from another stream.
                leaves = {name: each.detach().requires_grad_() for name, each in parameters.items()}
                output = functional_call(model, leaves, (self.grid, self.tokens))
                parts = objective(output)
                found = torch.autograd.grad(parts["loss"], list(leaves.values()), allow_unused=True)
                for into, gradient in zip(self.gradients, found, strict=True):
                    into.zero_() if gradient is None else into.copy_(gradient)
                self.parts = {name: value.detach() for name, value in parts.items()}
            except BaseException:
                with suppress(RuntimeError):  # of a record that has failed already
                    self.graph.capture_end()
                raise
            self.graph.capture_end()
        torch.cuda.current_stream().wait_stream(stream)

    def __call__(self, grid: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        self.grid.copy_(grid)
        self.tokens.copy_(tokens)
        self.graph.replay()
        return {name: value.clone() for name, value in self.parts.items()}


class _Replayed(torch.autograd.Function):
    """A loss whose gradients are there already."""

    @staticmethod
    def forward(
        ctx: Any, loss: Tensor, gradients: list[Tensor], owner: LossGraphs, *parameters: Tensor
    ) -> Tensor:
        ctx.gradients, ctx.owner, ctx.call = gradients, owner, owner.calls
        return loss.view_as(loss)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_loss: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.call != ctx.owner.calls:
            raise RuntimeError("the gradients of this loss were overwritten by a later one's")
        # New tensors: those of an optimiser must stay when the next step's are computed.
        return None, None, None, *torch._foreach_mul(ctx.gradients, by_loss)
