"""What a part of the faults reports: one :class:`Try` for each thing that it has broken."""

from typing import Final, Literal, NamedTuple

Outcome = Literal["right", "refused", "lost", "traceback", "hang", "silent", "crash"]
"""How a try ended.

- ``right``: the work was done as if nothing had happened, or the damage was repaired.
- ``refused``: one sentence says what is wrong and what to do; nothing was lost.
- ``lost``: finished work is gone, or cannot be used.
- ``traceback``: an exception that is no message for a user.
- ``hang``: no end within the time that the part allows.
- ``silent``: damaged input was used as if it were whole.
- ``crash``: a signal ended the process, or its memory ran out.
"""

SUCCESSES: Final[tuple[Outcome, ...]] = ("right", "refused")


class Try(NamedTuple):
    """One fault, and what came of it.

    Attributes:
        kind: what was broken, such as ``truncated JPEG``; a row of the table.
        case: this one, so that it can be made again.
        outcome: how it ended.
        detail: the message, or what is wrong.
    """

    kind: str
    case: str
    outcome: Outcome
    detail: str = ""
