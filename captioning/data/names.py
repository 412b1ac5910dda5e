"""The names of images: comparing those that look the same."""

import unicodedata


def composed(name: str) -> str:
    """A name in Unicode's composed form (NFC), which all ids of images have.

    Macs write the names of files in the decomposed form (NFD), in which "é" is two characters, so
    that a name in a caption file and the same name in a folder may differ.
    """
    return unicodedata.normalize("NFC", name)


def without_zeros(name: str) -> str:
    """A number without leading zeros; any other name is returned as it is."""
    return str(int(name)) if name.isascii() and name.isdecimal() and len(name) < 100 else name
