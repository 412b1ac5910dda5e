"""Several frozen encoders as one, for the ensembles of decoders that read different grids."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from captioning.models.encoders.base import (
    Encoder,
    GridEncoder,
    PicturePreprocessing,
    Preprocessing,
)
from captioning.support.errors import CaptioningError
from captioning.support.regions import WHOLE, Region
from captioning.support.state_dicts import fingerprint


@dataclass(frozen=True)
class JointPreprocessing(PicturePreprocessing):
    """Turns a picture into the input of a :class:`JointEncoder`.

    Attributes:
        members: The preprocessing of each encoder. All have the same ``resize``, so that all grids
            cover the same part of the picture.
    """

    members: tuple[Preprocessing, ...]

    @property
    def resize(self) -> str:
        return self.members[0].resize

    def __call__(
        self, image: Image.Image, part: Region = WHOLE, *, mirrored: bool = False
    ) -> Float[Tensor, "3 1 pixels"]:
        """The inputs of all encoders, whose sizes differ, flattened and one after another."""
        parts = [member(image, part, mirrored=mirrored) for member in self.members]
        return torch.cat([pixels.flatten(1) for pixels in parts], 1).unsqueeze(1)


class GridPart(NamedTuple):
    """The part of a joint grid that comes from one encoder.

    Attributes:
        first: Its first location.
        end: The location after its last one.
        channels: Its channels; the others are zero.
        grid_size: Its rows and columns.
    """

    first: int
    end: int
    channels: int
    grid_size: tuple[int, int]


class JointEncoder(Encoder):
    """Encodes a picture by several networks.

    The grids are one after another: locations 1 to P_1 are those of the first encoder, and so on.
    An encoder with fewer channels than the widest has zeros behind its own; :attr:`parts` says
    where each grid is.

    Attributes:
        members: The encoders. Their weights are frozen, also those of an encoder that was trained.
        grid_size: Rows and columns of the finest grid, on which attention maps are drawn.
        locations: Number of locations of all grids together.
        channels: Channels of the widest grid.
    """

    members: Sequence[GridEncoder]

    def __init__(self, members: Sequence[GridEncoder]) -> None:
        """Join encoders.

        Args:
            members: Encoders of any kinds and sizes, which see the same part of a picture.

        Raises:
            CaptioningError: they see different parts of it: ``resize`` is ``squash`` for some and
                ``crop`` for others.
        """
        super().__init__()
        if len({member.preprocessing.resize for member in members}) > 1:
            raise CaptioningError(
                "encoders see different parts of a picture: encoder.resize must be the same for "
                "models that work together."
            )
        self.members = nn.ModuleList(members)  # type: ignore[assignment]  # a sequence of its items
        self.preprocessing = JointPreprocessing(tuple(member.preprocessing for member in members))
        self.name = "+".join(member.name for member in members)
        self.channels = max(member.channels for member in members)
        self.locations = sum(member.locations for member in members)
        self.grid_size = max(
            (member.grid_size for member in members), key=lambda size: size[0] * size[1]
        )
        sources = dict.fromkeys(member.weights_source for member in members)
        self.weights, self.weights_source = "joint", ", ".join(sources)
        for member in members:
            if any(parameter.requires_grad for parameter in member.parameters()):
                # Until now, it has the fingerprint of the weights from which training started.
                member.fingerprint = fingerprint(member.name, member.state_dict())
        digests = " ".join(member.fingerprint for member in members)
        self.fingerprint = hashlib.sha256(digests.encode()).hexdigest()
        self.requires_grad_(False)
        self.train(False)

    def forward(
        self, images: Float[Tensor, "batch 3 1 pixels"]
    ) -> Float[Tensor, "batch locations channels"]:
        """Encode pictures that were preprocessed by :class:`JointPreprocessing`."""
        sizes = [member.preprocessing.size for member in self.members]
        parts = torch.split(images.flatten(2), [size * size for size in sizes], 2)
        grids = [
            member(part.reshape(-1, 3, size, size))
            for member, part, size in zip(self.members, parts, sizes, strict=True)
        ]
        return self.join(grids)

    def join(self, grids: Sequence[Tensor]) -> Float[Tensor, "batch locations channels"]:
        """One grid of the grids of all members (B x P_i x C_i)."""
        padded = [nn.functional.pad(grid, (0, self.channels - grid.shape[-1])) for grid in grids]
        return torch.cat(padded, 1)

    @property
    def parts(self) -> list["GridPart"]:
        """Where the grid of each encoder is in the joint one."""
        ends = list(accumulate(member.locations for member in self.members))
        return [
            GridPart(end - member.locations, end, member.channels, member.grid_size)
            for end, member in zip(ends, self.members, strict=True)
        ]
