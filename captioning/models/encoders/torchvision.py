"""A grid encoder from any torchvision network, given the names of the network and of a layer."""

import difflib
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
import torchvision
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torchvision.models import get_model, get_model_weights, list_models

from captioning.models.encoders.base import GridEncoder
from captioning.support.errors import CaptioningError
from captioning.support.registry_archive import RegistryArchive
from captioning.support.weights import ImageNet

_PROBE = 224  # pixels; torchvision's networks of fixed input size are built for this size
_LEARNED_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")  # BatchNorm's


class TorchvisionEncoder(GridEncoder):
    """A network of torchvision up to one of its layers, whose output is the grid.

    The parameters keep torchvision's names, so that its state dicts can be loaded. Channels, stride
    and grid size are measured by a forward pass without values (on torch's meta device).

    With ``trainable``, the *last block* is trained: the layers whose output has the resolution of
    the grid, beginning with the one that reduces the map to that size. That is ``layer4`` in
    ResNets, ``conv5_1`` to ``conv5_3`` in VGG16, and ``features.6`` to ``features.8`` in
    EfficientNet-B0.

    The layer must be one that the network runs in sequence: a child of the network, or an element
    of a child, such as ``features.8``. Its output must be a map of batch x channels x rows x
    columns whose size grows with the picture's. In a Swin Transformer only ``permute`` has such an
    output. A ViT has no such layer, and the only one of MaxViT is ``stem``.

    Attributes:
        network: torchvision's name of the network.
        layer: The layer's name within the network.
        name: ``network-layer``, or ``short_name``.
        short_name: A name without the layer, for a subclass of one network and layer.
        archive: A second source of the ImageNet weights.
    """

    short_name: ClassVar[str | None] = None
    archive: ClassVar[RegistryArchive | None] = None

    def __init__(
        self,
        name: str = "resnet50",
        layer: str = "layer4",
        weights: str = "imagenet",
        image_size: int = 224,
        resize: str = "squash",
        trainable: bool = False,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        pool: int = False,
    ) -> None:
        """Build the network up to the layer and load its weights.

        Args:
            name: torchvision's name of a classification network, such as ``efficientnet_b0``.
            layer: torchvision's name of the last layer to use, such as ``features.8``.
            weights: ``imagenet`` (the first published weights, ``IMAGENET1K_V1``), ``random`` (from
                a fixed seed), or the path of a state dict.
            image_size: Side of the square input in pixels, a multiple of the stride.
            resize: ``squash`` or ``crop``; see
                :class:`~captioning.models.encoders.base.Preprocessing`.
            trainable: Whether the last block is trained; everything before it is always frozen.
            mean: Mean of red, green and blue, for pixels in [0, 1]; None takes the values with
                which the ImageNet weights of this network were trained.
            std: Standard deviation of red, green and blue; None as for ``mean``.
            pool: Average the map over squares of ``pool`` x ``pool`` locations.

        Raises:
            CaptioningError: there is no such network or layer, the layer's output is not a map, the
                image size does not fit, or the weights are not available.
        """
        known = list_models(module=torchvision.models)
        if name not in known:
            near = difflib.get_close_matches(name, known, n=5, cutoff=0.4) or known
            raise CaptioningError(
                f"encoder.name={name}: torchvision has no such network; similar names are "
                f"{', '.join(near)}."
            )
        # `build` needs these; nn.Module allows plain values before its own constructor.
        self.network, self.layer = name, layer
        self.name = self.short_name or f"{name}-{layer}"
        # The first weights and not V2, which were trained with label smoothing: it is known to make
        # frozen features transfer worse (Kornblith et al., 2021).
        published = next(iter(get_model_weights(name)))
        self.imagenet = ImageNet(url=published.url, archive=self.archive)
        usual_mean, usual_std = _normalisation(name, published)
        super().__init__(
            weights, image_size, resize, trainable, mean or usual_mean, std or usual_std, pool
        )

    def build(self) -> None:
        """Register torchvision's layers up to ``layer``, and measure the grid."""
        whole = _network(self.network)
        calls = _record(whole)
        for name, child in _cut(whole, self.layer, calls, f"encoder.layer={self.layer}: ").items():
            self.add_module(name, child)
        kept = self.state_dict().keys()
        self.unused_weights = (
            *(f"{name}." for name, _ in whole.named_children() if name not in self._modules),
            *(key for key in whole.state_dict() if key not in kept),
        )
        small, large = self._shapes(256)[-1], self._shapes(512)[-1]
        if large[2] == small[2]:
            raise CaptioningError(
                f"encoder.layer={self.layer}: its output has {large[2]} rows whatever the size of "
                f"the picture, so it is not a map; {_choices(whole, calls)}."
            )
        self.channels = small[1]
        self.stride = 256 // (large[2] - small[2])

    def measure(self, image_size: int) -> tuple[int, int]:
        """Return the rows and columns of the map; unpadded convolutions make it smaller."""
        shape = self._shapes(image_size)[-1]
        return shape[2], shape[3]

    def map(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch channels rows columns"]:
        """Return the output of the layer."""
        for child in self.children():  # registered in the order in which they run
            images = child(images)
        return images

    def last_block(self) -> list[nn.Parameter]:
        """Return the parameters of the layers that work at the resolution of the grid.

        The statistics of BatchNorm are not parameters and do not change.
        """
        elements = self._elements()
        shapes = self._shapes(self.preprocessing.size)
        first = len(shapes)
        while first and shapes[first - 1][2] == shapes[-1][2]:
            first -= 1
        return [parameter for element in elements[first:] for parameter in element.parameters()]

    def _elements(self) -> list[nn.Module]:
        """The layers that run one after the other: children, or the elements of a Sequential."""
        return [
            element
            for child in self.children()
            for element in (child if isinstance(child, nn.Sequential) else [child])
        ]

    def _shapes(self, image_size: int) -> list[torch.Size]:
        """The shape of each element's output for one picture, computed without values."""
        value = torch.empty(1, 3, image_size, image_size, device="meta")
        shapes = []
        try:
            for element in self._elements():
                value = _run(element, value)
                shapes.append(value.shape)
        except (RuntimeError, AssertionError) as error:
            raise CaptioningError(
                f"encoder.image_size={image_size} does not fit {self.network}: {error}"
            ) from error
        return shapes


class _Call(NamedTuple):
    """One recorded call of a module during a forward pass of the network."""

    name: str
    input: object
    output: object


def _normalisation(
    name: str, published: Any
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """The mean and standard deviation with which the published weights were trained."""
    if name in (
        "googlenet",
        "inception_v3",
    ):  # their own forward rescales to this
        return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    transform = published.transforms()
    return tuple(transform.mean), tuple(transform.std)


def _network(name: str) -> nn.Module:
    """The whole network without values, except for buffers that are computed and not learned.

    Examples are the relative positions of a Swin Transformer. For these, and for RegNet, which
    computes its widths with tensors, the network is first built with values, which takes longer.
    """

    def make() -> nn.Module:
        with warnings.catch_warnings():  # GoogLeNet and Inception warn of a new initialisation
            warnings.simplefilter("ignore", FutureWarning)
            network: nn.Module = get_model(name, weights=None)
        return network.eval()

    def computed(network: nn.Module) -> dict[str, Tensor]:
        buffers = network.named_buffers()
        return {key: value for key, value in buffers if not key.endswith(_LEARNED_BUFFERS)}

    try:
        with torch.device("meta"):
            network = make()
        if not computed(network):
            return network
    except NotImplementedError:
        pass
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        network = make()
    values = computed(network)
    network.to("meta")
    for key, value in values.items():
        module, _, buffer = key.rpartition(".")
        setattr(network.get_submodule(module), buffer, value)
    return network


def _record(network: nn.Module) -> list[_Call]:
    """Run the network on one picture without values, and return the calls of all its modules."""
    calls: list[_Call] = []
    hooks = []
    for name, module in network.named_modules():

        def note(_: nn.Module, args: Any, output: object, name: str = name) -> None:
            calls.append(_Call(name, args[0] if args else None, output))

        hooks.append(module.register_forward_hook(note))
    _run(network, torch.empty(1, 3, _PROBE, _PROBE, device="meta"))
    for hook in hooks:
        hook.remove()
    return calls


def _run(module: nn.Module, value: Tensor) -> Any:
    """Call a module on the meta device, whatever device its tensors are on."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    with torch.no_grad():
        return functional_call(
            module, {name: tensor.to("meta") for name, tensor in tensors.items()}, (value,)
        )


def _sequence(calls: Sequence[_Call], parent: str) -> list[_Call]:
    """The calls of a module's children at its beginning that form a plain sequence.

    The input of the first child is the module's, and the input of each other child is the previous
    child's output. The list ends where another operation is applied to the value, such as
    flattening or the addition of a residual.
    """
    value = next(call.input for call in calls if call.name == parent)
    sequence: list[_Call] = []
    for call in calls:
        if not call.name or call.name.rpartition(".")[0] != parent:
            continue
        if call.input is not value or call.name in {before.name for before in sequence}:
            break
        sequence.append(call)
        value = call.output
    return sequence


def _cut(
    network: nn.Module, layer: str, calls: Sequence[_Call], complaint: str
) -> dict[str, nn.Module]:
    """The network's children up to ``layer``, in their order; the last one may be cut, too.

    Raises:
        CaptioningError: there is no such layer, it is not run in sequence, or its output is not a
            map.
    """
    modules = dict(network.named_modules())
    if not layer or layer not in modules:
        raise CaptioningError(f"{complaint}no such layer; {_choices(network, calls)}.")

    def until(parent: str, path: Sequence[str]) -> dict[str, nn.Module]:
        parts: dict[str, nn.Module] = {}
        for call in _sequence(calls, parent):
            name = call.name.rpartition(".")[2]
            parts[name] = modules[call.name]
            if name == path[0]:
                if len(path) > 1:
                    parts[name] = nn.Sequential()
                    for key, module in until(call.name, path[1:]).items():
                        parts[name].add_module(key, module)
                elif not _is_map(call.output):
                    shape = " x ".join(map(str, getattr(call.output, "shape", ())))
                    raise CaptioningError(
                        f"{complaint}its output for {_PROBE} pixels is {shape or 'not a tensor'}, "
                        "not a map of batch x channels x rows x columns; "
                        f"{_choices(network, calls)}."
                    )
                return parts
        raise CaptioningError(
            f"{complaint}the network cannot be cut there, since it does not run its layers in "
            f"sequence up to this one; {_choices(network, calls)}."
        )

    return until("", layer.split("."))


def _is_map(value: object) -> bool:
    return isinstance(value, Tensor) and value.dim() == 4 and value.shape[2] == value.shape[3] > 1


def _choices(network: nn.Module, calls: Sequence[_Call]) -> str:
    """A list, for messages, of the layers at which the network can be cut."""
    found = []
    for child in _sequence(calls, ""):
        if isinstance(network.get_submodule(child.name), nn.AdaptiveAvgPool2d):
            continue  # its output has the same size for all pictures
        if isinstance(network.get_submodule(child.name), nn.Sequential):
            inner = _sequence(calls, child.name)
            found += [call.name for call in inner if _is_map(call.output)]
        if _is_map(child.output):
            found.append(child.name)
    return f"choose among {', '.join(found)}" if found else "no layer of this network gives a map"
