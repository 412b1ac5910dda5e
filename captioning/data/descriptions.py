"""Captions of images by id: token files of raw ones, doubts, and files of cleaned ones."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from captioning.support.errors import CaptioningError, shortened
from captioning.support.files import atomic_write_text
from captioning.support.reading import numbered_lines


class TokenLine(NamedTuple):
    """One line of a token file: ``image#number<TAB>caption``."""

    line: int
    image: str
    number: int
    caption: str


_TOKEN_LINE = re.compile(r"([^\t]+)#([0-9]{1,9})\t(.*)", re.DOTALL)


def read_token_file(path: str | Path) -> list[TokenLine]:
    """Read a token file (``Flickr8k.token.txt``); trailing white space of captions is stripped.

    An empty caption is returned as it is: the caller decides what to do about it.

    Raises:
        CaptioningError: a malformed line, or a caption number that an image has twice.
    """
    lines: list[TokenLine] = []
    first_seen: dict[tuple[str, int], int] = {}
    for line, text in numbered_lines(path):
        match = _TOKEN_LINE.fullmatch(text)
        if match is None:
            raise CaptioningError(
                f"{path}:{line}: expected 'image.jpg#0<TAB>caption', found {text[:60]!r}."
            )
        image, number = match[1], int(match[2])
        other = first_seen.setdefault((image, number), line)
        if other != line:
            raise CaptioningError(
                f"{path}:{line}: caption {number} of {image} is already on line {other}; "
                "number the captions of an image differently."
            )
        lines.append(TokenLine(line, image, number, match[3].rstrip()))
    return lines


def load_descriptions(path: str | Path) -> dict[str, list[str]]:
    """Map each image of a token file to its raw captions, in the order of their numbers.

    Raises:
        CaptioningError: a malformed line, a repeated caption number or an empty caption.
    """
    numbered: dict[str, list[tuple[int, str]]] = {}
    for line, image, number, caption in read_token_file(path):
        if not caption:
            raise CaptioningError(f"{path}:{line}: the caption is empty; write one or remove it.")
        numbered.setdefault(image, []).append((number, caption))
    return {
        image: [caption for _, caption in sorted(captions)] for image, captions in numbered.items()
    }


_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]{8}")
"""Eight letters of Thai, Lao, Burmese, Khmer, Japanese or Chinese without a space."""


def doubts(descriptions: Mapping[str, Iterable[str]]) -> list[str]:
    """Sentences about raw captions that can be read, but hardly be what the user wants.

    These are captions in a script without spaces, since words are split at spaces in training and
    scoring; and captions without a letter or digit, which are references of no words.

    Args:
        descriptions: The raw captions by image id.
    """
    captions = [(image, text) for image, texts in descriptions.items() for text in texts]
    unspaced = [text for _, text in captions if _UNSPACED.search(text)]
    wordless = [image for image, text in captions if not any(map(str.isalnum, text))]
    found = []
    if 2 * len(unspaced) > len(captions):
        found.append(
            f"{len(unspaced):,} of {len(captions):,} captions have no spaces between their words, "
            f"such as {shortened(unspaced[0], 30)!r}; words are split at spaces, so put spaces "
            "between them with a word segmenter first."
        )
    if wordless:
        found.append(
            f"Captions without a word ({len(wordless):,}): of {shortened(wordless[0], 80)}, for "
            "example; as references of no words they raise BLEU."
        )
    return found


def save_descriptions(path: str | Path, descriptions: Mapping[str, Sequence[str]]) -> None:
    """Write one caption a line, ``image<TAB>caption``; `load_saved_descriptions` reads it back.

    Raises:
        CaptioningError: an image name with a tab or line end, an image without captions, or a
            caption that is not single-spaced (clean it first).
    """
    lines: list[str] = []
    for image, captions in descriptions.items():
        if not image.strip() or any(char in image for char in "\t\n\r"):
            raise CaptioningError(f"{path}: {image!r} cannot be written as an image's name.")
        if not captions:
            raise CaptioningError(f"{path}: {image} has no caption to write; leave the image out.")
        for caption in captions:
            if caption != " ".join(caption.split()):
                raise CaptioningError(
                    f"{path}: the caption {caption[:60]!r} of {image} is not single-spaced; "
                    "clean captions before saving them."
                )
            lines.append(f"{image}\t{caption}\n")
    atomic_write_text(path, "".join(lines))


def load_saved_descriptions(path: str | Path) -> dict[str, list[str]]:
    """Read what `save_descriptions` wrote.

    Raises:
        CaptioningError: the file cannot be read, or a line has no image or no tab.
    """
    descriptions: dict[str, list[str]] = {}
    for line, text in numbered_lines(path):
        image, tab, caption = text.partition("\t")
        if not tab or not image.strip():
            raise CaptioningError(
                f"{path}:{line}: expected 'image<TAB>caption', found {text[:60]!r}."
            )
        descriptions.setdefault(image, []).append(caption)
    return descriptions
