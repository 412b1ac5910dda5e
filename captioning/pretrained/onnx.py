"""A captioner as two ONNX graphs, for programs without torch.

``encoder.onnx`` turns a preprocessed photograph into everything that decoding starts from: what the
decoder remembers of the image, and its state before the first word. ``step.onnx`` reads one word
and gives the logits of the next one and the new state. ``examples/caption_onnx.py`` is a program
that uses them.

In both, a tensor whose name begins with ``memory.`` is passed to each step as it is, and one that
begins with ``state.`` is replaced by the step's output of the name ``next.`` instead of ``state.``.
"""

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from captioning.captioner import Captioner
from captioning.decoding.base import evaluation_mode
from captioning.kernels.backend import use_backend
from captioning.kernels.ops import AdditiveKeys
from captioning.models.attention.base import Memory
from captioning.models.decoders.base import Decoder, State, Step
from captioning.models.encoders.base import GridEncoder
from captioning.support.errors import CaptioningError
from captioning.support.files import atomic_write_bytes
from captioning.support.scratch import scratch_folder
from captioning.support.special_tokens import START

OPSET = 18


def save_onnx(captioner: Captioner, folder: Path) -> list[Path]:
    """Write ``encoder.onnx`` and ``step.onnx``.

    The number of images is free. Grids are rounded to half precision, as everywhere.

    Args:
        captioner: the model. It is computed by plain PyTorch.
        folder: is made if it is missing.

    Returns:
        The two files.

    Raises:
        CaptioningError: onnx and onnxscript are not installed, the model is an ensemble of several
            encoders, torch cannot export it, or the folder cannot be written.
    """
    try:
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ImportError as error:
        raise CaptioningError(
            "ONNX needs further packages: pip install 'captioning[onnx]'."
        ) from error
    encoder, decoder = captioner.network, captioner.decoder
    pixels = torch.zeros(2, 3, *[encoder.preprocessing.size] * 2, device=captioner.device)
    with use_backend("torch"), torch.no_grad(), evaluation_mode(encoder, decoder):
        first = _Encode(encoder, decoder)
        given = dict(zip(first.names_of(pixels), first(pixels), strict=True))
        step = _Step(decoder, first.kinds)
        tokens = torch.full((2, 1), START, device=captioner.device)
        outputs = step.names_of(tokens, given)
        later = given
        for _ in range(2):  # a state that grows with the words has two of them
            found = dict(zip(outputs, step(tokens, later), strict=True))
            later = later | {
                f"state.{name.removeprefix('next.')}": value
                for name, value in found.items()
                if name.startswith("next.")
            }
        images, words = torch.export.Dim("images", min=1), torch.export.Dim("words", min=0)
        shapes = {
            name: {0: images}
            | {
                dimension: words
                for dimension in range(1, value.dim())
                if value.shape[dimension] != given[name].shape[dimension]
            }
            for name, value in later.items()
        }
        encoder_file = _exported(
            first, {"pixels": pixels}, {"pixels": {0: images}}, ["pixels"], [*given]
        )
        step_file = _exported(
            step,
            {"tokens": tokens, "given": later},
            {"tokens": {0: images}, "given": shapes},
            ["tokens", *later],
            outputs,
        )
    for name, content in (("encoder.onnx", encoder_file), ("step.onnx", step_file)):
        atomic_write_bytes(folder / name, content)
    return [folder / "encoder.onnx", folder / "step.onnx"]


class _Encode(nn.Module):
    """From pixels to the memory and the state before the first word, as a flat tuple."""

    def __init__(self, encoder: GridEncoder, decoder: Decoder) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.kinds: dict[str, type] = {}

    def names_of(self, pixels: Tensor) -> list[str]:
        """The names of what :meth:`forward` returns; also notes the kinds of the memory."""
        memory, state = self._start(pixels)
        self.kinds = {name: type(value) for name, value in memory.items()}
        return [*(f"memory.{name}" for name in memory), *(f"state.{name}" for name in state)]

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        memory, state = self._start(pixels)
        values = [v.keys if isinstance(v, AdditiveKeys) else v for v in memory.values()]
        # Copies, because a state can have one tensor of zeros under several names.
        return (*values, *(value.clone() for value in state.values()))

    def _start(self, pixels: Tensor) -> tuple[Memory, State]:
        grid = self.encoder(pixels).half().float()  # as in the feature store
        memory = self.decoder.prepare(grid)
        return memory, self.decoder.start(memory, 1)


class _Step(nn.Module):
    """From a word, and the tensors of :class:`_Encode`, to logits and the next state."""

    def __init__(self, decoder: Decoder, kinds: dict[str, type]) -> None:
        super().__init__()
        self.decoder, self.kinds = decoder, kinds

    def names_of(self, tokens: Tensor, given: dict[str, Tensor]) -> list[str]:
        """The names of what :meth:`forward` returns."""
        step = self._step(tokens, given)
        attention = ["attention"] if step.attention is not None else []
        return ["logits", *attention, *(f"next.{name}" for name in step.state)]

    def forward(self, tokens: Tensor, given: dict[str, Tensor]) -> tuple[Tensor, ...]:
        step = self._step(tokens, given)
        attention = () if step.attention is None else (step.attention,)
        return (step.logits, *attention, *step.state.values())

    def _step(self, tokens: Tensor, given: dict[str, Tensor]) -> Step:
        parts: dict[str, dict[str, Any]] = {"memory": {}, "state": {}}
        for key, value in given.items():
            part, _, name = key.partition(".")
            parts[part][name] = value
        for name, kind in self.kinds.items():
            if kind is AdditiveKeys:
                parts["memory"][name] = AdditiveKeys(parts["memory"][name])
        step = self.decoder.step(tokens, parts["state"], parts["memory"])
        # What the next step does not read is left out, such as the sentinel of adaptive attention.
        return step._replace(state={name: step.state[name] for name in parts["state"]})


def _exported(
    module: nn.Module,
    inputs: dict[str, Any],
    shapes: dict[str, Any],
    input_names: list[str],
    output_names: list[str],
) -> bytes:
    """The ONNX file of a module.

    Args:
        module: in evaluation mode.
        inputs: an example of its arguments.
        shapes: the dimensions of each argument that are free.
        input_names: of the tensors in the arguments, in their order.
        output_names: of the tensors that it returns.

    Raises:
        CaptioningError: torch cannot export it.
    """
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with scratch_folder() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter, about its own parts
            torch.onnx.export(
                module.eval(),
                kwargs=inputs,
                f=folder / "model.onnx",
                input_names=input_names,
                output_names=output_names,
                opset_version=OPSET,
                dynamo=True,
                dynamic_shapes=shapes,
                external_data=False,
                verbose=False,
            )
            return (folder / "model.onnx").read_bytes()
    except Exception as error:  # of the exporter, in many kinds
        reason = str(error).strip().partition("\n")[0]
        raise CaptioningError(
            f"torch cannot export this model to ONNX ({type(error).__name__}: {reason}): a part of "
            "its own must consist of operations that torch.export knows."
        ) from error
