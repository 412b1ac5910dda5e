"""State dicts of encoders: their fingerprint, files of them, and random ones."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from captioning.support.errors import CaptioningError

State = dict[str, Tensor]


def fingerprint(name: str, state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over a network's name and its tensors: names, types, shapes, values.

    BatchNorm's counters are left out: they have no effect, and some files lack them.
    """
    digest = hashlib.sha256(name.encode())
    for key in sorted(_essential(state)):
        tensor = state[key].detach().cpu().contiguous()
        digest.update(f"\n{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()


def _essential(state: Mapping[str, Tensor]) -> list[str]:
    return [key for key in state if not key.endswith("num_batches_tracked")]


def random_state(expected: Mapping[str, Tensor]) -> State:
    """He initialisation from a fixed seed, so that equal configurations have equal features."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for key, like in expected.items():
        if not like.is_meta:
            state[key] = like.clone()
        elif like.ndim > 1:
            deviation = (2 / like[0].numel()) ** 0.5
            state[key] = torch.randn(like.shape, generator=generator) * deviation
        else:
            one = key.endswith(("weight", "running_var"))
            state[key] = torch.full(like.shape, int(one), dtype=like.dtype)
    return state


def load_file(
    path: Path, name: str, expected: Mapping[str, Tensor], unused: tuple[str, ...]
) -> State:
    """Read a state dict and keep what the encoder expects.

    Args:
        path: A state dict of torchvision's whole model or of its ``features`` alone.
        name: The encoder's name.
        expected: The encoder's state dict, for names, types and shapes.
        unused: Prefixes of the names of tensors that the file may contain although ``expected``
            lacks them.

    Raises:
        CaptioningError: the file is no state dict, or does not fit the encoder.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds for other files
        raise CaptioningError(
            f"{path} cannot be read as a state dict saved with torch.save(model.state_dict(), ...)"
        ) from error
    if not isinstance(found, Mapping) or not all(isinstance(v, Tensor) for v in found.values()):
        raise CaptioningError(f"{path} is not a state dict, a mapping of names to tensors.")
    if "0.weight" in found:  # the state dict of `model.features` alone
        found = {f"features.{key}": tensor for key, tensor in found.items()}

    missing = [key for key in _essential(expected) if key not in found]
    strange = [key for key in found if key not in expected and not key.startswith(unused)]
    if missing or strange:
        difference = f"it lacks {missing[0]}" if missing else f"it also has {strange[0]}"
        raise CaptioningError(
            f"{path} holds the weights of another network than {name}: {difference}."
        )
    state = {}
    for key, like in expected.items():
        tensor = found.get(key, torch.zeros(like.shape))
        if tensor.shape != like.shape:
            raise CaptioningError(
                f"{path} holds the weights of another network than {name}: "
                f"{key} is {tuple(tensor.shape)}, not {tuple(like.shape)}."
            )
        # A copy, so that the memory of the unused classifier is freed.
        state[key] = tensor.to(like.dtype).clone()
    return state
