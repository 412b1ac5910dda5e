"""Reading checkpoint files, which may be damaged, or written by a stranger.

Whatever is in a file, the result is its content or a :class:`CaptioningError` that names the file.
Nothing in it is imported or called: a file holds tensors and plain data only, and
:mod:`captioning.support.trust` says which classes its settings may name.
"""

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from captioning.data.vocabulary import Vocabulary
from captioning.pretrained.folder import read_folder
from captioning.pretrained.places import find_model
from captioning.support.checkpoint_file import damaged_part
from captioning.support.errors import CaptioningError

FORMAT: Final = 2
"""Version of the checkpoint format. Format 1 has other names for the parameters."""

_ENTRIES: Final[Mapping[str, type]] = {
    "hyper_parameters": Mapping,
    "state_dict": Mapping,
    "encoder": Mapping,
    "run": Mapping,
    "classes": Mapping,
    "epoch": int,
    "global_step": int,
    "epoch_means": Mapping,
    "loops": Mapping,
    "callbacks": Mapping,
    "optimizer_states": list,
    "lr_schedulers": list,
}
"""The types of the entries of a checkpoint. Not all of them are in every checkpoint."""

_REQUIRED: Final = ("hyper_parameters", "state_dict", "encoder")
_DEEPEST: Final = 20
_MOST_VALUES: Final = 2_000_000
_LARGEST_INTEGER: Final = 2**64
_SMALLEST_LIMIT: Final = 2**29  # bytes; torchvision's file of VGG16 has a tensor of 411 MB


def read_checkpoint(path: str | Path, key: str = "ckpt") -> dict[str, Any]:
    """Read a checkpoint file, or an exported model; both hold plain data and tensors only.

    Args:
        path: the file, or a model as in :func:`captioning.pretrained.places.find_model`, which has
            the entries of a checkpoint of weights alone.
        key: the setting that names the file, for messages.

    Raises:
        CaptioningError: there is no such file, it is damaged, or it is not a checkpoint of a
            Captioner.
    """
    name, place = f"{key}={path}", find_model(path, key)
    if place.is_dir():
        exported = read_folder(place, name)
        check_content(exported, name)
        return exported
    try:
        with place.open("rb") as file:  # once, because a running training may replace it
            damaged = damaged_part(file)
            if damaged is None:
                file.seek(0)
                checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile and torch raise many kinds; torch advises unsafe loading
        # In a file with wrong offsets, zipfile may seek to a negative position: EINVAL.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise CaptioningError(f"{name} cannot be read ({error.strerror}).") from error
        raise CaptioningError(f"{name}: not a checkpoint, or cut short.") from error
    if damaged is not None:
        raise CaptioningError(
            f"{name}: this file is damaged (its part {damaged} does not match its checksum): copy "
            "it again, or use another checkpoint of the run."
        )
    check_content(checkpoint, name)
    return checkpoint  # type: ignore[no-any-return]


def check_content(checkpoint: object, name: str) -> None:
    """Check that what was read is a checkpoint of a Captioner, and of the current format.

    Args:
        checkpoint: what was read.
        name: the setting and its file, for messages.

    Raises:
        CaptioningError: it is something else, or an entry is missing or of another type.
    """
    if not isinstance(checkpoint, dict) or not {"hyper_parameters", "encoder"} <= set(checkpoint):
        raise CaptioningError(f"{name}: a checkpoint, but not one of this project's.")
    check_format(checkpoint, name)
    for entry, kind in _ENTRIES.items():
        if entry not in checkpoint and entry in _REQUIRED:
            raise CaptioningError(f"{name}: this checkpoint has no {entry}.")
        if entry in checkpoint and not isinstance(checkpoint[entry], kind):
            raise CaptioningError(
                f"{name}: the {entry} of this checkpoint is a {type(checkpoint[entry]).__name__}."
            )
    settings, encoder = checkpoint["hyper_parameters"], checkpoint["encoder"]
    for entry in ("hyper_parameters", "run"):
        check_plain(checkpoint.get(entry, {}), f"{name}: in the {entry} of this checkpoint,")
    words = settings.get("vocabulary")
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise CaptioningError(f"{name}: the vocabulary of this checkpoint is no list of words.")
    try:
        Vocabulary(words)
    except CaptioningError as error:
        raise CaptioningError(f"{name}: {error}") from error
    for what, state in (
        ("model", checkpoint["state_dict"]),
        ("encoder", encoder.get("state_dict")),
    ):
        if not isinstance(state, Mapping) or not all(
            isinstance(key, str) and isinstance(tensor, Tensor) for key, tensor in state.items()
        ):
            raise CaptioningError(f"{name}: the weights of its {what} are no tensors with names.")


def check_plain(value: object, what: str) -> None:
    """Check that a value is numbers, texts, lists and dictionaries, and not too many of them.

    A small file can hold a list that has a list ten times, which has another one ten times, and so
    on; or a list that is in itself.

    Raises:
        CaptioningError: it is something else.
    """
    level, values = [value], 0
    for _ in range(_DEEPEST):
        values += len(level)
        if values > _MOST_VALUES:
            raise CaptioningError(f"{what} there are too many values.")
        inner: list[object] = []
        for each in level:
            if isinstance(each, str):
                try:
                    each.encode()
                except UnicodeEncodeError as error:
                    raise CaptioningError(f"{what} there is a text that is not Unicode.") from error
            elif isinstance(each, int):
                if abs(each) > _LARGEST_INTEGER:
                    raise CaptioningError(f"{what} there is a number that is too large.")
            elif isinstance(each, Mapping):
                inner += [*each, *each.values()]
            elif isinstance(each, list | tuple):
                inner += each
            elif not isinstance(each, float | None):
                raise CaptioningError(
                    f"{what} there is a {type(each).__name__}, which is no plain data."
                )
        if not inner:
            return
        level = inner
    raise CaptioningError(f"{what} values are nested too deeply.")


def check_format(checkpoint: Mapping[str, Any], name: str) -> None:
    """Refuse a checkpoint of an earlier format, whose parameters have other names.

    Args:
        checkpoint: the content of the checkpoint.
        name: the setting or file that the message names.

    Raises:
        CaptioningError: the checkpoint has another format.
    """
    if checkpoint.get("format") != FORMAT:
        raise CaptioningError(
            f"{name}: written by version 0.1 of captioning, whose parameters had other names: "
            "train again, or use version 0.1."
        )


def check_complete(checkpoint: Mapping[str, Any], name: str) -> None:
    """Check the entries from which a Captioner is restored, in addition to those of its weights.

    Args:
        checkpoint: what :func:`check_content` has accepted.
        name: the setting and its file, for messages.

    Raises:
        CaptioningError: an entry is missing or of another type.
    """
    run, encoder = checkpoint.get("run", {}), checkpoint["encoder"]
    for what, found, kind in (
        ("name of its run", run.get("name"), str),
        ("configuration of its run", run.get("config", {}), Mapping),
        ("earlier_data of its run", run.get("earlier_data", []), list),
        ("teachers of its run", run.get("teachers", []), list),
        ("noise_seed", checkpoint.get("noise_seed", ...), int | None),
        ("fingerprint of its encoder", encoder.get("fingerprint"), str),
        ("weights_source of its encoder", encoder.get("weights_source"), str),
    ):
        if not isinstance(found, kind):
            raise CaptioningError(
                f"{name}: the {what} is missing in this checkpoint, or is something else."
            )


def has_trained_encoder(checkpoint: Mapping[str, Any]) -> bool:
    """Whether the weights of the encoder were trained, and are among those of the model."""
    return any(key.startswith("trainable_encoder.") for key in checkpoint["state_dict"])


def check_can_go_on(checkpoint: Mapping[str, Any], name: str) -> None:
    """Check that training can go on from a checkpoint.

    Args:
        checkpoint: what :func:`check_content` has accepted.
        name: the setting and its file, for messages.

    Raises:
        CaptioningError: it has the weights alone, as a run's ``best.ckpt``.
    """
    if "optimizer_states" not in checkpoint:
        raise CaptioningError(
            f"{name}: this checkpoint has weights alone, without the state of the optimiser: "
            "continue from the last.ckpt of its run, or start a new run from its weights by "
            "init_from=."
        )


def first_difference(weights: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> str | None:
    """The first name that only one of two state dicts has, or whose shapes differ; None: none."""
    shapes, other_shapes = (
        {name: tensor.shape for name, tensor in each.items()} for each in (weights, others)
    )
    return min((name for name, _ in shapes.items() ^ other_shapes.items()), default=None)


def check_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Check that weights are those of a module: their names, shapes and types, and no NaN.

    Args:
        module: the module that they will be loaded into.
        weights: the weights.

    Raises:
        CaptioningError: they are others.
    """
    expected = module.state_dict()
    parameters = {key for key, _ in module.named_parameters()}
    other = min(expected.keys() ^ weights.keys(), default=None)
    if other is not None:
        which = "lack" if other in expected else "have"
        raise CaptioningError(
            f"its settings and its weights do not belong together: the weights {which} {other}."
        )
    for key, tensor in weights.items():
        if tensor.shape != expected[key].shape:
            raise CaptioningError(
                f"its settings and its weights do not belong together: {key} has the shape "
                f"{list(tensor.shape)} instead of {list(expected[key].shape)}."
            )
        is_number = tensor.is_floating_point()
        dense = tensor.layout is torch.strided and not tensor.is_quantized
        # The values of a tensor with a stride of 0 stand for any number of elements.
        whole = dense and tensor.untyped_storage().nbytes() >= tensor.nbytes
        if not whole or is_number != expected[key].is_floating_point():
            raise CaptioningError(f"{key} is a {tensor.dtype} tensor of another kind.")
        valid = torch.isfinite if key in parameters else lambda values: ~torch.isnan(values)
        if is_number and not valid(tensor).all():
            raise CaptioningError(
                f"{key} has values that are no numbers (NaN or infinity), since its "
                "training diverged or it was damaged: use another checkpoint."
            )


@contextmanager
def restoring(name: str, size: int) -> Iterator[None]:
    """Turn each error of a strange checkpoint into one sentence, and bound the memory it takes.

    Args:
        name: the setting and its file, for messages.
        size: the size of the checkpoint in bytes. A new tensor may have four times that size (of
            weights that were saved in half precision, or are temporary), or 512 MB.

    Raises:
        CaptioningError: something was raised within the block.
    """
    try:
        with _Limit(max(4 * size, _SMALLEST_LIMIT)):
            yield
    except CaptioningError as error:
        raise CaptioningError(f"{name}: {error}") from error
    except Exception as error:
        raise CaptioningError(
            f"{name}: no model can be made of it ({type(error).__name__}: {error})."
        ) from error


class _Limit(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses each new tensor of more than so many bytes, before its memory is filled."""

    def __init__(self, limit: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.limit = limit

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), named: Any = None
    ) -> Any:
        made = function(*arguments, **(named or {}))
        if isinstance(made, Tensor) and made.device.type != "meta" and made.nbytes > self.limit:
            raise CaptioningError("its settings describe a larger model than its weights are.")
        return made
