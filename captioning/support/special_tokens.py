"""The special tokens, whose ids are the same in every vocabulary."""

from typing import Final

PAD: Final = 0
"""Padding after a caption; it is never predicted and never counted."""
START: Final = 1
"""The token before the first word."""
END: Final = 2
"""The token after the last word; it is predicted like a word."""
UNK: Final = 3
"""The token of every word that is not in the vocabulary."""

SPECIAL_WORDS: Final = ("<pad>", "<start>", "<end>", "<unk>")
"""How the special tokens are written, by id."""
