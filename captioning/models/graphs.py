"""A training step's loss and gradients as one CUDA graph, for each shape that batches have.

A step of the recurrence is some thousand small pieces of work for a GPU, and Python takes longer to
ask for them than the GPU to do them. A graph asks for all at once. It is recorded from what Python
does, once a shape, and then replayed on other numbers in the same places.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from captioning.errors import CaptioningError

Losses = Callable[[Tensor, Tensor], dict[str, Tensor]]
"""From grids and tokens, the ``loss`` and its parts."""


class LossGraphs:
    """Computes a loss, from the second batch of a shape on by a graph.

    What is computed must be decided by shapes alone, and by nothing that the GPU has computed. The
    gradients lie in one place for all graphs, until the next call. Copies hold no graph.
    """

    def __init__(self) -> None:
        self._graphs: dict[Hashable, _Graph] = {}
        self._met: set[Hashable] = set()
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
        losses: Losses,
        parameters: Sequence[nn.Parameter],
        grid: Float[Tensor, "images locations channels"],
        tokens: Int[Tensor, "images captions length"],
    ) -> dict[str, Tensor]:
        """What ``losses(grid, tokens)`` gives, the gradients of ``loss`` included.

        Args:
            losses: always the same function.
            parameters: what gradients are wanted of; a graph reads them where they were in memory
                when it was recorded, and another one is recorded if they have moved.
            grid: on a GPU.
            tokens: anywhere.

        Raises:
            CaptioningError: ``losses`` does what no graph can record.
        """
        self.calls += 1
        tokens = tokens.to(grid.device, non_blocking=True)
        autocast = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        places = tuple(parameter.data_ptr() for parameter in parameters)
        key = grid.shape, grid.dtype, tokens.shape, autocast, places
        if key not in self._met:  # compiles, allocates and chooses what a graph then takes over
            self._met.add(key)
            return losses(grid, tokens)
        if key not in self._graphs:
            self._graphs[key] = self._record(losses, parameters, grid, tokens, autocast)
        return self._graphs[key](self, grid, tokens)

    def _record(
        self,
        losses: Losses,
        parameters: Sequence[nn.Parameter],
        grid: Tensor,
        tokens: Tensor,
        autocast: tuple[bool, torch.dtype],
    ) -> "_Graph":
        if not self._gradients:
            self._gradients = [torch.empty_like(parameter) for parameter in parameters]
            self._pool = torch.cuda.graph_pool_handle()
        made = _Graph(torch.empty_like(grid), torch.empty_like(tokens), list(parameters))
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        # A weight that autocast has cast before would be one that is never cast again.
        enabled, dtype = autocast
        with (
            torch.cuda.stream(stream),
            torch.autocast("cuda", dtype, enabled=enabled, cache_enabled=False),
        ):
            try:
                made.graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                parts = losses(made.grid, made.tokens)
                found = torch.autograd.grad(parts["loss"], parameters, allow_unused=True)
                for into, gradient in zip(self._gradients, found, strict=True):
                    into.zero_() if gradient is None else into.copy_(gradient)
                made.parts = {name: value.detach() for name, value in parts.items()}
                made.graph.capture_end()
            except RuntimeError as error:
                reason = str(error).strip().partition("\n")[0]
                raise CaptioningError(
                    f"The loss cannot be recorded as a CUDA graph ({reason}): use compile=false."
                ) from error
        torch.cuda.current_stream().wait_stream(stream)
        made.gradients = self._gradients
        return made


class _Graph:
    """One shape's: where it reads, what it does, where the results are."""

    parts: dict[str, Tensor]
    gradients: list[Tensor]

    def __init__(self, grid: Tensor, tokens: Tensor, parameters: list[nn.Parameter]) -> None:
        self.grid, self.tokens, self.parameters = grid, tokens, parameters
        self.graph = torch.cuda.CUDAGraph()

    def __call__(self, owner: LossGraphs, grid: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        self.grid.copy_(grid)
        self.tokens.copy_(tokens)
        self.graph.replay()
        parts = {name: value.clone() for name, value in self.parts.items()}
        loss = _Replayed.apply(parts["loss"], self.gradients, owner, *self.parameters)
        return parts | {"loss": loss}


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
