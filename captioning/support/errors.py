"""The one exception that a user is meant to read."""


class CaptioningError(Exception):
    """Bad input, told in one sentence: which file, line or key, and what to do about it.

    The scripts print the message alone and exit with status 1; the traceback is shown under
    ``HYDRA_FULL_ERROR=1``. Anything else that is raised is a defect of the code.
    """
