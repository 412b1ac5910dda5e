"""The exception for mistakes of the user."""


class CaptioningError(Exception):
    """Invalid input. The message says in one sentence which file, line or key, and what to do.

    The scripts print only the message and exit with status 1. With ``HYDRA_FULL_ERROR=1`` they show
    the traceback, too. Any other exception is a bug.
    """
