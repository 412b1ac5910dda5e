"""Clean a data set's captions and build its vocabulary: ``python -m captioning prepare --help``.

Training does the same by itself. The files of this command are for inspection and notebooks.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from captioning.apps.status import status_of
from captioning.data.cleaning import Cleaner, clean_descriptions
from captioning.data.corpus import read_corpus
from captioning.data.descriptions import save_descriptions
from captioning.data.readers.registry import LAYOUTS
from captioning.data.splits import SPLITS
from captioning.data.vocabulary import build_vocabulary


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m captioning prepare",
        description="Clean the captions of a data set and build the vocabulary of its training "
        "split. Writes descriptions.txt (image<TAB>caption, every image that has captions) and "
        "vocabulary.json.",
    )
    parser.add_argument("--root", type=Path, required=True, help="the data set's folder or file")
    parser.add_argument(
        "--out", type=Path, default=Path("prepared"), help="output folder (default: %(default)s)"
    )
    parser.add_argument(
        "--name", default="flickr8k", help="flickr8k, flickr30k, coco, own (default: %(default)s)"
    )
    parser.add_argument(
        "--layout",
        default="auto",
        help=f"auto, {', '.join(LAYOUTS)}, or the dotted path of a reader (default: %(default)s)",
    )
    parser.add_argument(
        "--skip-bad",
        action="store_true",
        help="skip images without a file or a caption, and empty captions, instead of stopping",
    )
    words = parser.add_argument_group("vocabulary")
    words.add_argument(
        "--min-count",
        type=int,
        default=5,
        metavar="N",
        help="how often a word must occur in the training captions (default: %(default)s)",
    )
    words.add_argument("--max-size", type=int, metavar="N", help="largest number of words to keep")
    cleaning = parser.add_argument_group("cleaning")
    cleaning.add_argument("--keep-case", action="store_true", help="do not convert to lower case")
    cleaning.add_argument("--keep-punctuation", action="store_true", help="split at spaces only")
    cleaning.add_argument(
        "--drop-one-letter-words",
        action="store_true",
        help='drop words of one letter, which lowers scores because references contain "a"',
    )
    cleaning.add_argument("--drop-numbers", action="store_true", help="drop words with a digit")
    return parser


def _prepare(options: argparse.Namespace) -> None:
    corpus = read_corpus(
        options.root, name=options.name, layout=options.layout, skip_bad=options.skip_bad
    )
    cleaner = Cleaner(
        lowercase=not options.keep_case,
        strip_punctuation=not options.keep_punctuation,
        drop_one_letter_words=options.drop_one_letter_words,
        drop_numbers=options.drop_numbers,
    )
    cleaned = clean_descriptions({image.id: image.captions for image in corpus.images}, cleaner)
    train = [text for image in corpus.split("train") for text in cleaned[image.id]]
    vocabulary = build_vocabulary(train, options.min_count, options.max_size)
    save_descriptions(options.out / "descriptions.txt", cleaned)
    vocabulary.save(options.out / "vocabulary.json")

    images = ", ".join(f"{len(corpus.split(split)):,} {split}" for split in SPLITS)
    print(f"{corpus.name} ({corpus.layout} layout) in {corpus.root}: {images} images")
    for warning in corpus.warnings:
        print(f"warning: {warning}")
    for note in corpus.notes:
        print(f"note: {note}")
    empty = sum(not text for texts in cleaned.values() for text in texts)
    if empty:
        print(f"note: {empty:,} captions are empty after cleaning.")
    words = [word for text in train for word in text.split()]
    known = sum(word in vocabulary for word in words)
    print(
        f"{options.out / 'descriptions.txt'}: {sum(map(len, cleaned.values())):,} captions of "
        f"{len(cleaned):,} images"
    )
    print(
        f"{options.out / 'vocabulary.json'}: {len(vocabulary.words):,} of {len(set(words)):,} "
        f"training words, those that occur {options.min_count} times or more (--min-count), and "
        f"{known / len(words):.1%} of all occurrences"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = _parser().parse_args(arguments)
    return status_of(lambda: _prepare(options), options.out)


if __name__ == "__main__":
    sys.exit(main())
