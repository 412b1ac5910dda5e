"""Finding the image files that a data set of anybody's names, wherever they are in its folder."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from captioning.data.image_files import visible_files
from captioning.data.names import composed
from captioning.data.readers.image_folders import is_image_name
from captioning.support.errors import CaptioningError


class FoundImages:
    """The image files of a data set.

    A name may be a path from that folder, from the folder of the file that names it, or from the
    root of the file system; or the name of a file in any folder below, also in other capitals, or
    without its suffix.

    Args:
        files: The image files, by their paths from their folder.
        bases: The folders from which a name may be a path.
        inside: Whether only ``files`` may be found, and no path leads out of their folder: for data
            that was downloaded.
    """

    def __init__(
        self, files: Mapping[str, Path], bases: Sequence[Path], *, inside: bool = False
    ) -> None:
        self.files = files
        self.bases = bases
        self.inside = inside
        self._exact = {**files} | {composed(str(path)): path for path in files.values()}
        self._loose: dict[str, set[Path]] = defaultdict(set)
        for path in files.values():
            for name in (path.name, path.stem):
                self._loose[composed(name).lower()].add(path)

    @classmethod
    def below(cls, root: Path, beside: Path | None = None) -> FoundImages:
        """The image files in a folder and in those below it.

        Args:
            root: The folder.
            beside: The folder of the file that names the images.

        Raises:
            CaptioningError: a folder cannot be read.
        """
        found = (path for path in visible_files(root) if is_image_name(path.name))
        files = {composed(path.relative_to(root).as_posix()): path for path in found}
        return cls(files, [*dict.fromkeys([beside or root, root])])

    def find(self, name: str, where: str) -> Path | None:
        """The file that a name means; None if there is none.

        Args:
            name: The name, as the data set gives it.
            where: The file and line that give it, for messages.

        Raises:
            CaptioningError: several files have this name, or it is an address on the web.
        """
        if name.startswith(("http://", "https://")):
            raise CaptioningError(
                f"{where}: {name[:80]} is an address: download the images first, and give the "
                "names of their files."
            )
        plain = composed(name.strip()).replace("\\", "/").removeprefix("./")
        if plain in self._exact:
            return self._exact[plain]
        # A path that leads out of the folder, or a file with an unusual suffix.
        for base in [] if self.inside else self.bases:
            path = base / plain
            if _is_file(path):
                return path
        named = self._loose.get(plain.rpartition("/")[2].lower(), set())
        if len(named) > 1:
            first, second, *_ = sorted(map(str, named))
            raise CaptioningError(
                f"{where}: {name!r} may be {first} or {second}: give the folder, too, or remove "
                "one of them."
            )
        return next(iter(named), None)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or has a NUL character
        return False
