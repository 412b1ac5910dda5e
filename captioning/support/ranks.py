"""Which of a run's processes this is, before Lightning has set anything up."""

import os


def is_first_process() -> bool:
    """Whether this is the only process of a run, or the first of several.

    Lightning numbers the processes that it starts by ``LOCAL_RANK``, and SLURM all of a run, on all
    machines, by ``SLURM_PROCID``.
    """
    ranks = {os.environ.get(name, "0") for name in ("LOCAL_RANK", "SLURM_PROCID")}
    return ranks == {"0"}
