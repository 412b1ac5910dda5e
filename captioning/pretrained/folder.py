"""The folder of an exported model: what it contains, and how it is read.

It has ``model.safetensors``, ``config.json`` and ``vocabulary.json``, and a model card for people,
``README.md``. No other file is read, and none of these can hold code: they are tensors and JSON.
What they say is checked like the content of a checkpoint.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, JsonValue
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from captioning.data.vocabulary import Vocabulary
from captioning.pretrained.places import CONFIG, VOCABULARY, WEIGHTS
from captioning.support.errors import CaptioningError
from captioning.support.reading import load_record

FROZEN: Final = "frozen_encoder."
"""What the names of a frozen encoder's weights begin with, where a model contains them."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class EncoderRecord(_Record):
    """The encoder of a model.

    Attributes:
        name: of the encoder.
        weights_source: where its weights came from.
        fingerprint: of its weights; those of a frozen encoder that has a name must have it.
    """

    name: str
    weights_source: str
    fingerprint: str


class InputRecord(_Record):
    """How a photograph becomes the input of the encoder, for programs without this package.

    Attributes:
        size: height and width, in pixels.
        resize: ``squash`` or ``crop``; see ``Preprocessing`` of the encoders.
        resampling: Pillow's name of the interpolation.
        mean: of red, green and blue, for values in [0, 1].
        std: of red, green and blue.
    """

    size: int
    resize: str
    resampling: str
    mean: list[float]
    std: list[float]


class Config(_Record):
    """The content of ``config.json``.

    Attributes:
        library_name: always ``captioning``.
        captioning_version: the version that wrote it.
        format: the version of the names of the weights, as of a checkpoint.
        settings: the arguments of the ``Captioner``, without the vocabulary.
        encoder: its name and fingerprint.
        input: its preprocessing.
        run: the training: its name, seed and configuration, without the places of its files.
        shared: names of weights that are the same tensor as another one, by that other name.
    """

    library_name: Literal["captioning"] = "captioning"
    captioning_version: str
    format: Literal[2]
    settings: dict[str, JsonValue]
    encoder: EncoderRecord
    input: InputRecord
    run: dict[str, JsonValue]
    shared: dict[str, str] = {}


def read_folder(folder: Path, name: str) -> dict[str, Any]:
    """Read the folder of an exported model.

    Args:
        folder: what :func:`~captioning.pretrained.places.find_model` has found.
        name: the setting and its folder, for messages.

    Returns:
        The same entries as in a checkpoint of weights alone, not yet checked.

    Raises:
        CaptioningError: a file cannot be read, or is of another kind.
    """
    try:
        config = load_record(folder / CONFIG, Config.model_validate_json)
        words = Vocabulary.load(folder / VOCABULARY).to_list()
        weights = read_weights(folder / WEIGHTS)
        for copy, original in config.shared.items():
            if original not in weights or copy in weights:
                raise CaptioningError(
                    f"{folder / CONFIG}: shared: {copy} is in {WEIGHTS}, or {original} is not."
                )
            weights[copy] = weights[original]
    except CaptioningError as error:
        raise CaptioningError(f"{name}: {error}") from error
    frozen = {key: tensor for key, tensor in weights.items() if key.startswith(FROZEN)}
    return {
        "format": config.format,
        "hyper_parameters": {**config.settings, "vocabulary": words},
        "state_dict": {key: tensor for key, tensor in weights.items() if key not in frozen},
        "encoder": {
            "fingerprint": config.encoder.fingerprint,
            "weights_source": config.encoder.weights_source,
            "state_dict": {key.removeprefix(FROZEN): tensor for key, tensor in frozen.items()},
        },
        "run": dict(config.run),
        "noise_seed": None,
    }


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a file of safetensors, whose tensors cannot overlap or be larger than the file.

    Raises:
        CaptioningError: the file cannot be read, or is not of that format.
    """
    try:
        found: Mapping[str, Tensor] = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise CaptioningError(
            f"{path} cannot be read as safetensors ({reason}): copy it again."
        ) from error
    return dict(found)
