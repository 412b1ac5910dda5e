"""Penn Treebank tokenisation of captions, by the very program that COCO's caption scores use.

The scores of the literature are computed on the output of Stanford CoreNLP 3.4.1's PTBTokenizer
with punctuation removed. The program and the list of punctuation come from ``pycocoevalcap``, but
captions are passed to the program differently: with ``pycocoevalcap``, a caption with an unusual
line break shifts every later caption to the next image.
"""

import contextlib
import hashlib
import json
import subprocess
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Final

from pycocoevalcap.tokenizer import ptbtokenizer

from captioning.metrics.java import java_command, java_environment
from captioning.support.errors import CaptioningError
from captioning.support.files import atomic_write_json
from captioning.support.paths import cache_dir

_JAR = Path(ptbtokenizer.__file__).parent / ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR
_PUNCTUATION = frozenset(ptbtokenizer.PUNCTUATIONS)

TOKENIZATION: Final = "stanford-corenlp-3.4.1/1"
"""The name of the tokeniser in results files and in its cache. Change it when tokens change."""

# The characters that end a line for the program (found by trying all of Unicode), and lone
# surrogates, which have no UTF-8 form. The original tool replaces only "\n".
_LINE_ENDS = "\n\v\f\r\u2028\u2029"
_SURROGATES = "".join(map(chr, range(0xD800, 0xE000)))
_TO_SPACES = str.maketrans(dict.fromkeys(_LINE_ENDS + _SURROGATES, " "))


def tokenize(captions: Sequence[str], *, remember: bool = False) -> list[str]:
    """Tokens of each caption, lower-case and without punctuation, joined by single spaces.

    All captions go through one run of the program, in their order, so that the result equals
    ``pycocoevalcap``'s on the same captions; in rare cases the tokens of a caption depend on the
    next one ("No." before a caption that starts with a number). Brackets become ``-lrb-`` and so on
    and are not removed, because the original list has them in upper case. The results of the last
    lists are cached in this process.

    Args:
        captions: any text, empty or with any character.
        remember: whether to cache the result on disk, under `cache_dir()`, as is useful for
            references, which all runs on a corpus share.

    Returns:
        One string for each caption, in order; empty for captions of punctuation only.

    Raises:
        CaptioningError: Java is missing or fails.
    """
    return list((_remembered if remember else _tokenized)(tuple(captions)))


@lru_cache(maxsize=16)
def _tokenized(captions: tuple[str, ...]) -> tuple[str, ...]:
    if not captions:
        return ()
    command = java_command(
        *("-cp", _JAR.name, "edu.stanford.nlp.process.PTBTokenizer"),
        *("-preserveLines", "-lowerCase"),
        heap="1G",
    )
    text = "\n".join(caption.translate(_TO_SPACES) for caption in captions)
    done = subprocess.run(
        command,
        input=text.encode(),
        capture_output=True,
        cwd=_JAR.parent,  # because a class path cannot contain a folder with ":" in its name
        env=java_environment(),
        check=False,
    )
    lines = done.stdout.decode().split("\n")
    if done.returncode != 0 or len(lines) != len(captions):
        complaint = done.stderr.decode(errors="replace").strip() or "no message"
        raise CaptioningError(
            f"the PTB tokeniser returned {len(lines)} lines for {len(captions)} captions "
            f"(exit status {done.returncode}): {complaint[-500:]}"
        )
    return tuple(
        " ".join(word for word in line.rstrip().split(" ") if word not in _PUNCTUATION)
        for line in lines
    )


@lru_cache(maxsize=16)
def _remembered(captions: tuple[str, ...]) -> tuple[str, ...]:
    key = hashlib.sha256(json.dumps([TOKENIZATION, captions]).encode()).hexdigest()
    path = cache_dir() / "tokens" / f"{key}.json"
    tokens = _read(path, len(captions))
    if tokens is None:
        tokens = _tokenized(captions)
        # A cache that cannot be written (read-only home, full disk) costs time but is no error.
        with contextlib.suppress(CaptioningError):
            atomic_write_json(path, tokens)
    return tokens


def _read(path: Path, count: int) -> tuple[str, ...] | None:
    """The cached tokens, or None if the file is absent or damaged."""
    try:
        tokens = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(tokens, list) or len(tokens) != count:
        return None
    return tuple(tokens) if all(isinstance(line, str) for line in tokens) else None
