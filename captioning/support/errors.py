"""The exception for mistakes of the user."""

_LONGEST_MESSAGE = 1000  # characters: half of a terminal's screen


class CaptioningError(Exception):
    """Invalid input. The message says in one sentence which file, line or key, and what to do.

    The scripts print only the message and exit with status 1. With ``HYDRA_FULL_ERROR=1`` they show
    the traceback, too. Any other exception is a bug.

    A message may quote a file that a stranger made. Therefore line ends and other control
    characters in it become spaces and escape sequences, and the middle of a message that is longer
    than 1,000 characters is left out.
    """

    def __init__(self, message: str) -> None:
        super().__init__(shortened(printable(message), _LONGEST_MESSAGE))


def printable(text: str) -> str:
    """A text in one line, with control characters and lone surrogates as escape sequences."""
    if text.isprintable():
        return text
    return "".join(
        char
        if char.isprintable()
        else " "
        if char.isspace()
        else char.encode("unicode_escape").decode()
        for char in text
    )


def shortened(text: str, longest: int) -> str:
    """A text of at most ``longest`` characters: the middle of a longer one is left out."""
    if len(text) <= longest:
        return text
    end = longest // 3  # the remedy is at the end of a message
    return f"{text[: longest - end - 5]} ... {text[-end:]}"
