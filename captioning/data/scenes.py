"""Scenes: a small data set of drawn pictures, made on first use, whose objects' boxes are known.

A scene shows one to three objects on a background. An object has a shape and a colour (together its
*kind*), a size and a texture. Five captions come from a grammar that varies the order of words,
uses synonyms, leaves details out and says truly how the objects lie to each other.

The *combination* of a scene is the set of kinds in it. Every combination belongs to one split, so a
caption of the test split can never be remembered from training: the parts have to be seen. Each
kind is in all splits, in other company.

Everything follows from the seed and the scene's name, and so is the same on every machine.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from random import Random

from PIL import Image, ImageDraw

from captioning.data.splits import SPLITS
from captioning.support.files import atomic_write_json, atomic_write_text
from captioning.support.locks import file_lock
from captioning.support.progress import track_progress

SIDE = 224
"""Width and height of a scene, in pixels."""

IMAGES = {"train": 1200, "dev": 60, "test": 160}
"""Scenes in each split: as many as two cores take through VGG16 in a minute and a half."""

_VERSION = 3  # to be raised with every change of what is drawn or said
_FINE = 4  # drawn so many times larger and scaled down, for smooth edges
_SHARES = {"train": 80, "dev": 8, "test": 12}  # of all combinations, in percent

# The kinds that training never shows alone. All others it does, and has to: VGG16 hardly tells a
# colour on a shape that nothing but pairs have shown it on.
_TEST_ALONE = ("yellow circle", "black star")

# The first word of each line is the attribute's own; captions use the others too.
_SHAPES = (
    ("circle", "disc"),
    ("square", "box"),
    ("triangle",),
    ("star",),
)
# Few and far between, as VGG16's last block tells shapes better than colours.
_COLOURS: dict[tuple[str, ...], tuple[int, int, int]] = {
    ("red",): (215, 30, 35),
    ("yellow",): (252, 222, 20),
    ("blue",): (40, 70, 240),
    ("black",): (12, 12, 12),
}
# Radius in pixels. No two objects of a scene are of one size, and people begin with the largest.
_SIZES = {("large", "big"): (47, 52), (): (39, 43), ("small", "little"): (32, 35)}
_TEXTURES = ("plain", "striped", "spotted")
_GROUNDS = {
    "grey": ((150, 150, 150), (128, 128, 128)),
    "tan": ((205, 175, 130), (182, 150, 105)),
    "brown": ((120, 85, 55), (98, 68, 42)),
    "lavender": ((176, 170, 205), (155, 148, 186)),
}
_PATTERNS = ("plain", "lined", "checkered", "dotted")
_RELATIONS = {
    "left": ("left of", "to the left of", "on the left side of"),
    "right": ("right of", "to the right of", "on the right side of"),
    "above": ("above", "over"),
    "below": ("below", "under", "beneath"),
}
_OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}


@dataclass(frozen=True)
class Thing:
    """One object of a scene; words as in the captions, first the attribute's own name."""

    shape: tuple[str, ...]
    colour: tuple[str, ...]
    size: tuple[str, ...]
    texture: str
    centre: tuple[int, int]
    radius: int
    angle: float

    @property
    def kind(self) -> str:
        """Colour and shape, by which the splits differ."""
        return f"{self.colour[0]} {self.shape[0]}"


@dataclass(frozen=True)
class Scene:
    """What is drawn, and said, of one image."""

    name: str
    ground: str
    pattern: str
    things: tuple[Thing, ...]
    captions: tuple[str, ...]


def make_scenes(folder: Path, seed: int = 0, *, progress: bool = True) -> Path:
    """Draw the scenes into a folder, unless they are there, in Flickr8k's own layout.

    Beside the images and texts, ``boxes.json`` has every object's box; see
    :mod:`captioning.data.boxes`.

    Args:
        folder: where data sets of drawn scenes are kept; each seed has a folder of its own there.
        seed: another seed gives other scenes of the same kind.
        progress: whether to show how far it is.

    Returns:
        The data set's folder.
    """
    root = folder / f"scenes-v{_VERSION}-seed{seed}"
    done = root / "boxes.json"  # written last
    if done.exists():
        return root
    with file_lock(root.with_suffix(".lock"), f"it is drawing {root}"):
        if not done.exists():
            _write(root, seed, progress)
    return root


def _write(root: Path, seed: int, progress: bool) -> None:
    images, texts = root / "Flicker8k_Dataset", root / "Flickr8k_text"
    images.mkdir(parents=True, exist_ok=True)
    boxes: dict[str, object] = {}
    tokens: list[str] = []
    with track_progress("Drawing scenes", sum(IMAGES.values()), visible=progress) as advance:
        for split in SPLITS:
            names = []
            for scene in scenes(split, seed):
                picture, found = draw(scene)
                picture.save(images / scene.name, compress_level=1)
                names.append(scene.name)
                tokens += (f"{scene.name}#{n}\t{text}" for n, text in enumerate(scene.captions))
                boxes[scene.name] = {
                    "size": picture.size,
                    "objects": [
                        {"names": thing.shape, "colours": thing.colour, "box": box}
                        for thing, box in zip(scene.things, found, strict=True)
                    ],
                }
                advance(1)
            listed = "".join(f"{name}\n" for name in names)
            atomic_write_text(texts / f"Flickr_8k.{split}Images.txt", listed)
    atomic_write_text(texts / "Flickr8k.token.txt", "".join(f"{line}\n" for line in tokens))
    atomic_write_json(root / "boxes.json", boxes)


def scenes(split: str, seed: int = 0) -> Iterator[Scene]:
    """The scenes of a split, in order."""
    for number in range(IMAGES[split]):
        name = f"{split}_{number:04d}.png"
        random = Random(f"{_VERSION} {seed} {name}")
        things = _things(random, split)
        ground, pattern = random.choice(list(_GROUNDS)), random.choice(_PATTERNS)
        texts = tuple(_caption(random, things, ground, pattern) for _ in range(5))
        yield Scene(name, ground, pattern, things, texts)


def split_of(kinds: Sequence[str]) -> str:
    """The one split in which a combination of kinds may be shown; a hash decides for several."""
    if len(kinds) == 1:
        return "test" if kinds[0] in _TEST_ALONE else "train"
    digest = hashlib.sha256(" + ".join(sorted(set(kinds))).encode()).digest()
    place = int.from_bytes(digest[:8]) % 100
    for split in SPLITS:
        place -= _SHARES[split]
        if place < 0:
            return split
    raise AssertionError("the shares add up to 100")


def _things(random: Random, split: str) -> tuple[Thing, ...]:
    """Objects of different kinds, in a combination of the split, that do not overlap."""
    while True:
        count = random.choice((1,) * 4 + (2,) * 6 + (3,))
        kinds = [(random.choice(_SHAPES), random.choice(list(_COLOURS))) for _ in range(count)]
        names = {f"{colour[0]} {shape[0]}" for shape, colour in kinds}
        if len(names) == count and split_of(sorted(names)) == split:
            break
    while True:
        things: list[Thing] = []
        sizes = sorted(random.sample(range(len(_SIZES)), count))
        for (shape, colour), size in zip(kinds, (list(_SIZES)[n] for n in sizes), strict=True):
            radius = random.randint(*_SIZES[size])
            x, y = (random.randint(radius + 4, SIDE - radius - 4) for _ in range(2))
            texture, angle = random.choice(_TEXTURES), random.uniform(-15, 15)
            things.append(Thing(shape, colour, size, texture, (x, y), radius, angle))
        if all(
            math.dist(a.centre, b.centre) > a.radius + b.radius + 20
            for a, b in combinations(things, 2)
        ):
            return tuple(things)


# What is drawn.


def draw(scene: Scene) -> tuple[Image.Image, list[tuple[int, int, int, int]]]:
    """The picture, and each object's box in it: left, top, right, bottom in pixels."""
    picture = _background(scene)
    boxes = []
    for thing in scene.things:
        colour = _COLOURS[thing.colour]
        mask = _mask(thing)
        paint = Image.new("RGB", picture.size, colour)
        if thing.texture != "plain":
            marks = Image.new("RGB", picture.size, _shade(colour))
            paint.paste(marks, mask=_texture(thing))
        picture.paste(paint, mask=mask)
        box = mask.getbbox()
        assert box is not None
        boxes.append(box)
    return picture, boxes


def _shade(colour: tuple[int, int, int]) -> tuple[int, ...]:
    """Of a colour: darker where it is light, and lighter where it is dark."""
    if sum(colour) > 450:
        return tuple(channel * 7 // 10 for channel in colour)
    return tuple(channel + (255 - channel) * 4 // 10 for channel in colour)


def _background(scene: Scene) -> Image.Image:
    first, second = _GROUNDS[scene.ground]
    picture = Image.new("RGB", (SIDE, SIDE), first)
    pen = ImageDraw.Draw(picture)
    if scene.pattern == "lined":
        for y in range(0, SIDE, 16):
            pen.rectangle((0, y, SIDE, y + 5), fill=second)
    elif scene.pattern == "checkered":
        for row in range(0, SIDE, 28):
            for column in range(row % 56, SIDE, 56):
                pen.rectangle((column, row, column + 27, row + 27), fill=second)
    elif scene.pattern == "dotted":
        for y in range(10, SIDE, 20):
            for x in range(10, SIDE, 20):
                pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=second)
    return picture


def _mask(thing: Thing) -> Image.Image:
    """Where the object is: 255 inside, with a smooth edge."""
    fine = Image.new("L", (SIDE * _FINE, SIDE * _FINE))
    pen = ImageDraw.Draw(fine)
    x, y = thing.centre
    shape = thing.shape[0]

    if shape == "circle":
        reach = thing.radius
        ends = (x - reach, y - reach, x + reach, y + reach)
        pen.ellipse([_FINE * end for end in ends], fill=255)
    else:
        turn = math.radians(thing.angle)
        sine, cosine = math.sin(turn) * thing.radius, math.cos(turn) * thing.radius
        pen.polygon(
            [
                (
                    round(_FINE * (x + u * cosine - v * sine)),
                    round(_FINE * (y + u * sine + v * cosine)),
                )
                for u, v in _OUTLINES[shape]
            ],
            fill=255,
        )
    return fine.reduce(_FINE)


def _round(corners: int, *radii: float) -> list[tuple[float, float]]:
    """Corners around the centre, the first one on top, at radii that take turns."""
    return [
        (
            radii[n % len(radii)] * math.sin(2 * math.pi * n / corners),
            -radii[n % len(radii)] * math.cos(2 * math.pi * n / corners),
        )
        for n in range(corners)
    ]


# Points in the unit circle, y downwards.
_OUTLINES = {
    "square": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
    "triangle": _round(3, 1.0),
    "star": _round(10, 1.0, 0.5),
}  # fmt: skip


def _texture(thing: Thing) -> Image.Image:
    """Where stripes or spots are, all over the picture; the object's mask cuts them out."""
    marks = Image.new("L", (SIDE, SIDE))
    pen = ImageDraw.Draw(marks)
    x, y = thing.centre
    reach = range(-thing.radius - 8, thing.radius + 8, 10)
    for step in reach:
        if thing.texture == "striped":
            pen.line((x + step - 50, y + 50, x + step + 50, y - 50), fill=255, width=2)
        else:
            for other in reach:
                centre = (x + step, y + other)
                pen.ellipse((*(c - 2 for c in centre), *(c + 2 for c in centre)), fill=255)
    return marks


# What is said.


def _caption(random: Random, things: Sequence[Thing], ground: str, pattern: str) -> str:
    order = list(things)
    if len(order) == 3 and random.random() < 0.1:
        order.pop()  # people do not say everything
    phrases = [_phrase(random, thing) for thing in order]
    place = _place(random, ground, pattern) if random.random() < 0.4 else ""
    if len(order) == 1:
        text = random.choice(
            ("there is {0}{p}", "{0}{p}", "{0} is shown{p}", "a picture of {0}{p}")
        )
    elif len(order) == 2:
        text = _of_two(random, order)
    else:
        text = _of_three(random, order)
    text = text.format(*phrases, p=place)
    return f"{text[0].upper()}{text[1:]} ."


def _of_two(random: Random, order: Sequence[Thing]) -> str:
    side = _side(order[0], order[1])
    relation, reverse = random.choice(_RELATIONS[side]), random.choice(_RELATIONS[_OPPOSITE[side]])
    return random.choice(
        (
            f"{{0}} is {relation} {{1}}{{p}}",
            f"{{0}} {relation} {{1}}{{p}}",
            f"there is {{0}} {relation} {{1}}{{p}}",
            f"{{0}} with {{1}} {reverse} it{{p}}",
            "{0} and {1}{p}",
            "there is {0} and {1}{p}",
        )
    )


def _of_three(random: Random, order: Sequence[Thing]) -> str:
    relation = random.choice(_RELATIONS[_side(order[0], order[1])])
    listed = "{0} , {1} and {2}{p}"
    return random.choice(
        (
            f"{{0}} {relation} {{1}} and {{2}}{{p}}" if _same_side(order) else listed,
            f"{{0}} is {relation} {{1}} , and there is also {{2}}{{p}}",
            f"there is {{0}} {relation} {{1}} , and {{2}}{{p}}",
            listed,
            f"there are {listed}",
        )
    )


def _phrase(random: Random, thing: Thing) -> str:
    words = []
    if thing.size and random.random() < 0.3:
        words.append(random.choice(thing.size))
    if random.random() < 0.97:
        words.append(_mostly_first(random, thing.colour))
    if thing.texture != "plain" and random.random() < 0.3:
        words.insert(random.randint(0, len(words)), thing.texture)
    words.append(_mostly_first(random, thing.shape))
    article = "an" if words[0][0] in "aeiou" else "a"
    return " ".join([article, *words])


def _mostly_first(random: Random, synonyms: Sequence[str]) -> str:
    return synonyms[0] if random.random() < 0.75 else random.choice(synonyms)


def _place(random: Random, ground: str, pattern: str) -> str:
    words = [ground] if pattern == "plain" or random.random() < 0.5 else []
    if pattern != "plain":
        words.append(pattern)
    noun = random.choice(("background", "surface"))
    return f" {random.choice(('on', 'against'))} a {' '.join(words)} {noun}"


def _side(a: Thing, b: Thing) -> str:
    """Where ``a`` lies, seen from ``b``: along the axis on which they are further apart."""
    dx, dy = (p - q for p, q in zip(a.centre, b.centre, strict=True))
    if abs(dx) >= abs(dy):
        return "left" if dx < 0 else "right"
    return "above" if dy < 0 else "below"


def _same_side(order: Sequence[Thing]) -> bool:
    return _side(order[0], order[1]) == _side(order[0], order[2])
