"""Whether an object computes what its class says, so that an op may compute the same in its place.

Models are made to be changed: by subclasses, by methods set on an object, by hooks, by other layers
in the place of linear ones. A shortcut asks here, and steps aside if anything is not as it was.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.nn.modules import module as torch_module

from captioning.models.attention.additive import AdditiveAttention

Methods = Mapping[str, Callable[..., Any]]


def methods_of(cls: type, *names: str) -> Methods:
    """The methods of a class, by name, as they are now."""
    return {name: getattr(cls, name) for name in names}


def keeps_methods(module: nn.Module, methods: Methods) -> bool:
    """Whether no subclass, object or patch has other methods."""
    return all(
        getattr(type(module), name) is method and name not in vars(module)
        for name, method in methods.items()
    )


FORWARD: Mapping[type, Methods] = {
    nn.Linear: methods_of(nn.Linear, "forward", "__call__"),
    AdditiveAttention: methods_of(AdditiveAttention, "forward", "scores", "__call__"),
}


def is_plain(module: nn.Module, cls: type) -> bool:
    """Whether a call of a module is a call of the ``forward`` of a class, and nothing else.

    It is not for a subclass, which includes layers with a parametrisation, nor with hooks.
    """
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return (
        type(module) is cls
        and keeps_methods(module, FORWARD[cls])
        and not any(hooks)
        and not torch_module._has_any_global_hook()  # type: ignore[no-untyped-call]
        and module._compiled_call_impl is None
    )
