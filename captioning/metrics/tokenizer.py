"""Penn Treebank tokenisation of captions, by the very program that COCO's caption scores use.

The scores of the literature are computed on the output of Stanford CoreNLP 3.4.1's PTBTokenizer
with punctuation removed. The program and the list of punctuation come from ``pycocoevalcap``; how
captions reach the program is ours, because there a caption with an unusual line break moved every
caption after it to the next image.
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
"""Names what scores depend on, and what is remembered: raise it when anything here changes tokens.
"""

# What the program takes for the end of a line (seen by feeding it all of Unicode), and surrogates
# without their other half, which have no UTF-8 form. The original tool replaces only "\n".
_LINE_ENDS = "\n\v\f\r\u2028\u2029"
_SURROGATES = "".join(map(chr, range(0xD800, 0xE000)))
_TO_SPACES = str.maketrans(dict.fromkeys(_LINE_ENDS + _SURROGATES, " "))


def tokenize(captions: Sequence[str], *, remember: bool = False) -> list[str]:
    """Tokens of each caption, lower-case and without punctuation, joined by single spaces.

    All captions go through one run of the program, in their order, so that the result equals
    ``pycocoevalcap``'s on the same captions; the program looks across the end of a caption in rare
    cases ("No." before a caption that starts with a number). Brackets stay, as ``-lrb-`` and so on,
    because the original's list has them in upper case. The lists seen last are remembered for the
    life of this process.

    Args:
        captions: any text, empty or with any character.
        remember: keep the result on disk, under `cache_dir()`, for later processes. For references,
            which every run of a corpus shares.

    Returns:
        One string for each caption, in order; empty where nothing but punctuation was there.

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
        cwd=_JAR.parent,  # a class path cannot hold a folder with ":" in its name; a bare name can
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
        # A cache that cannot be written (read-only home, full disk) costs time, never the scores.
        with contextlib.suppress(OSError):
            atomic_write_json(path, tokens)
    return tokens


def _read(path: Path, count: int) -> tuple[str, ...] | None:
    """The remembered tokens, or None where the file is absent or is not what we wrote."""
    try:
        tokens = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(tokens, list) or len(tokens) != count:
        return None
    return tuple(tokens) if all(isinstance(line, str) for line in tokens) else None
