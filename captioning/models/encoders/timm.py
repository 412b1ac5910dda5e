"""A grid encoder from any network of timm, such as a ResNet, a Swin Transformer, DINOv2 or CLIP.

timm (PyTorch Image Models, Wightman 2019) is an optional dependency: the extra ``timm``.
"""

import difflib
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torch.func import functional_call

from captioning.models.encoders.base import GridEncoder, Preprocessing
from captioning.support.errors import CaptioningError
from captioning.support.state_dicts import State


@dataclass(frozen=True)
class TimmPreprocessing(Preprocessing):
    """Preprocessing with the interpolation that timm's data configuration names.

    Attributes:
        interpolation: ``bicubic``, ``bilinear`` or another one of Pillow's filters.
    """

    interpolation: str = "bicubic"

    @property
    def resampling(self) -> Image.Resampling:
        """The interpolation between pixels when a picture is resized."""
        return Image.Resampling[self.interpolation.upper()]


class TimmEncoder(GridEncoder):
    """A network of timm, whose last map, or the map after one of its blocks, is the grid.

    Without ``layer``, the grid is the output of timm's ``forward_features``: for a convolutional
    network its last map, for a Vision Transformer its normalised patch tokens, without class and
    register tokens, in the order of the patches. With ``layer``, it is the output of one of the
    blocks that timm's ``features_only`` offers, without the final normalisation.

    Mean, standard deviation, interpolation and, with ``image_size=None``, the size of the pictures
    are those of timm's data configuration. Networks of fixed size are built for ``image_size``, for
    which timm interpolates the position embeddings of pretrained weights.

    With ``trainable``, the stage or block is trained whose output is the grid.
    """

    def __init__(
        self,
        name: str = "resnet50.a1_in1k",
        layer: str | None = None,
        weights: str = "pretrained",
        image_size: int | None = 224,
        resize: str = "squash",
        trainable: bool = False,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        pool: int = False,
    ) -> None:
        """Build the network and load its weights.

        Args:
            name: timm's name of the network, with or without the tag of its weights, such as
                ``vit_small_patch14_dinov2.lvd142m`` or ``vit_base_patch32_clip_224.openai``.
            layer: timm's name of the block, such as ``layer3`` or ``blocks.8``; None for the
                output of ``forward_features``.
            weights: ``pretrained`` (timm's, from its cache or the Hugging Face hub), ``random``
                (timm's initialisation from a fixed seed), or the path of a state dict of the
                network, ``.pth`` or ``.safetensors``.
            image_size: Side of the square input in pixels, a multiple of the stride; None for the
                size with which the weights were trained.
            resize: ``squash`` or ``crop``; see
                :class:`~captioning.models.encoders.base.Preprocessing`.
            trainable: Whether the last block is trained; everything before it is always frozen.
            mean: Mean of red, green and blue, for pixels in [0, 1]; None takes timm's.
            std: Standard deviation of red, green and blue; None takes timm's.
            pool: Average the map over squares of ``pool`` x ``pool`` locations.

        Raises:
            CaptioningError: timm is not installed, there is no such network or layer, its output is
                not a map, the image size does not fit, or the weights are not available.
        """
        timm = _import_timm()
        _check_name(timm, name)
        # `build` needs these; nn.Module allows plain values before its own constructor.
        self.network_name, self.layer = name, layer
        self.name = f"timm-{name}" if layer is None else f"timm-{name}-{layer}"
        self._config = timm.get_pretrained_cfg(name)
        usual = timm.data.resolve_data_config({}, pretrained_cfg=self._config.to_dict())
        super().__init__(
            weights,
            usual["input_size"][-1] if image_size is None else image_size,
            resize,
            trainable,
            mean or tuple(usual["mean"]),
            std or tuple(usual["std"]),
            pool,
        )
        plain = self.preprocessing
        self.preprocessing = TimmPreprocessing(
            plain.size, plain.resize, plain.mean, plain.std, usual["interpolation"]
        )

    def build(self) -> None:
        """Create the network with timm's initialisation, and measure its map.

        It has values, because some networks compute constants from tensors in their constructors.
        """
        self.network = self._create()
        size = self.preprocessing.size
        shape = self._shape(size)
        self.channels = shape[1]
        if self._config.fixed_input_size:
            self.stride = size // shape[2]
        else:
            self.stride = 256 // (self._shape(512)[2] - self._shape(256)[2])

    def measure(self, image_size: int) -> tuple[int, int]:
        """Return the rows and columns of the map; unpadded convolutions make it smaller."""
        shape = self._shape(image_size)
        return shape[2], shape[3]

    def map(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch channels rows columns"]:
        """Return the map of the network."""
        grid: Tensor = self.network(images)
        return grid

    def last_block(self) -> list[nn.Parameter]:
        """Return the parameters of the stage or block whose output is the grid."""
        return self.network.last_block()

    def find_weights(self, weights: str) -> tuple[State, str]:
        """Return the state dict that ``weights`` stands for, and a description of its source.

        Raises:
            CaptioningError: the weights are not available, or do not fit.
        """
        if weights == "random":
            return super().find_weights(weights)
        if weights == "pretrained":
            source = self._config.hf_hub_id or self._config.url or "no source"
            try:
                network = self._create(pretrained=True)
            except Exception as error:  # of timm, the hub's client, and the network
                raise CaptioningError(
                    f"The pretrained weights of timm's {self.network_name} are not available "
                    f"({_first_line(error)}): copy the cache of the Hugging Face hub from a "
                    "machine that can reach it, or set encoder.weights to a file."
                ) from error
            return self._state(network), f"timm, {source}"
        path = Path(weights).expanduser()
        if not path.is_file():
            raise CaptioningError(
                f"encoder.weights={weights} is neither a file nor one of: pretrained, random."
            )
        return self._state(self._from_file(path)), str(path)

    def _create(self, *, pretrained: bool = False) -> "TimmMap":
        options: dict[str, Any] = {}
        size = self.preprocessing.size
        if self._config.fixed_input_size:
            options["img_size"] = size
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            try:
                model = _import_timm().create_model(
                    self.network_name, pretrained=pretrained, num_classes=0, **options
                )
            except (AssertionError, ValueError, ZeroDivisionError) as error:
                raise CaptioningError(
                    f"encoder.image_size={size} does not fit timm's {self.network_name}: "
                    f"{_first_line(error)}."
                ) from error
        return TimmMap(model.eval(), self.layer)

    def _from_file(self, path: Path) -> "TimmMap":
        """The network with the weights of a file, which timm converts to its own names."""
        try:
            found = _import_timm().models.load_state_dict(str(path), weights_only=True)
        except Exception as error:  # torch.load raises many kinds for other files
            raise CaptioningError(
                f"{path} cannot be read as a state dict saved with torch.save(model.state_dict(), "
                "...) or as safetensors."
            ) from error
        network = self._create()
        try:
            convert = self._converter()
            state = convert(found, network.model) if convert else found
            result = network.model.load_state_dict(state, strict=False)
            difference = f"it lacks {result.missing_keys[0]}" if result.missing_keys else ""
        except Exception as error:  # a conversion expects the names of its own network
            difference = _first_line(error)
        if difference:
            raise CaptioningError(
                f"{path} holds the weights of another network than timm's {self.network_name}: "
                f"{difference}."
            )
        return network

    def _converter(self) -> Callable[[Mapping[str, Any], nn.Module], State] | None:
        """The function of timm that renames published tensors, if the network has one."""
        entrypoint = _import_timm().model_entrypoint(self.network_name.partition(".")[0])
        convert = getattr(inspect.getmodule(entrypoint), "checkpoint_filter_fn", None)
        return cast("Callable[[Mapping[str, Any], nn.Module], State] | None", convert)

    @staticmethod
    def _state(network: nn.Module) -> State:
        return {f"network.{key}": value for key, value in network.state_dict().items()}

    def _shape(self, image_size: int) -> torch.Size:
        """The shape of the map of one picture, computed without values."""
        tensors = {**dict(self.network.named_parameters()), **dict(self.network.named_buffers())}
        picture = torch.empty(1, 3, image_size, image_size, device="meta")
        try:
            with torch.no_grad():
                grid = functional_call(
                    self.network, {key: value.to("meta") for key, value in tensors.items()}, picture
                )
        except (AssertionError, IndexError, RuntimeError, ValueError) as error:
            raise CaptioningError(
                f"encoder.image_size={image_size} does not fit timm's {self.network_name}: "
                f"{_first_line(error)}."
            ) from error
        shape: torch.Size = grid.shape
        return shape


class TimmMap(nn.Module):
    """A network of timm up to a map of batch x channels x rows x columns.

    Attributes:
        model: timm's network, without what is not needed for the map.
        layer: The block whose output is the map; None for the output of ``forward_features``.
    """

    def __init__(self, model: nn.Module, layer: str | None) -> None:
        super().__init__()
        self.model = model
        self.layer = layer
        self._index: Any = None  # of the block among those that timm offers
        if layer is None:
            return
        offered = self._offered()
        if layer not in offered or not hasattr(model, "forward_intermediates"):
            raise CaptioningError(f"encoder.layer={layer}: no such layer; {self._choices()}.")
        self._index = [offered.index(layer)]
        prune: Any = getattr(model, "prune_intermediate_layers", None)
        if prune is not None:
            self._index = prune(self._index, prune_norm=True)

    def forward(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch channels rows columns"]:
        """Return the map."""
        model: Any = self.model
        if self._index is not None:
            (grid,) = model.forward_intermediates(
                images, indices=self._index, output_fmt="NCHW", intermediates_only=True
            )
        else:
            grid = self._as_map(model.forward_features(images))
        return cast(Tensor, grid)

    def last_block(self) -> list[nn.Parameter]:
        """The parameters of the block that computes the map, or of the last one that has any."""
        offered = self._offered()
        if self.layer is not None:
            offered = offered[: offered.index(self.layer) + 1]
        blocks = [list(self.model.get_submodule(name).parameters()) for name in offered]
        return next((block for block in reversed(blocks) if block), [])

    def _as_map(self, output: Any) -> Tensor:
        """The output of ``forward_features`` as a map."""
        if isinstance(output, Tensor) and output.dim() == 4:
            if getattr(self.model, "output_fmt", "NCHW") == "NHWC":
                return output.permute(0, 3, 1, 2)
            return output
        if isinstance(output, Tensor) and output.dim() == 3:
            patches = output[:, getattr(self.model, "num_prefix_tokens", 0) :]
            side = math.isqrt(patches.shape[1])
            if side > 0 and side**2 == patches.shape[1]:
                return patches.transpose(1, 2).reshape(len(output), -1, side, side)
        raise CaptioningError(
            "encoder.layer=null: the output of this network is not a map of locations; "
            f"{self._choices()}."
        )

    def _offered(self) -> list[str]:
        """The names of the blocks whose output can be had as a map."""
        return [info["module"] for info in getattr(self.model, "feature_info", [])]

    def _choices(self) -> str:
        names = self._offered() if hasattr(self.model, "forward_intermediates") else []
        return f"choose among {', '.join(names)}" if names else "timm offers none of this network"


def _import_timm() -> ModuleType:
    try:
        import timm
    except ImportError as error:
        raise CaptioningError(
            'encoder=timm needs the package timm: pip install "timm>=1.0.20"'
        ) from error
    module: ModuleType = timm
    return module


def _check_name(timm: ModuleType, name: str) -> None:
    tagged = timm.list_pretrained()
    if name in tagged or name in timm.list_models():
        return
    known = [*timm.list_models(), *tagged]
    near = difflib.get_close_matches(name, known, n=5, cutoff=0.4) or known[:5]
    raise CaptioningError(
        f"encoder.name={name}: timm has no such network; similar names are {', '.join(near)}."
    )


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")
