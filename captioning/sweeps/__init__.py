"""Sweeps: every job a process of its own, in a folder that says how far it came.

Hydra's launchers call :func:`captioning.sweeps.jobs.run_job` for each job, be it here, in a worker
of Ray or in a task of SLURM; it starts :mod:`captioning.sweeps.job_process`, which trains.
:mod:`captioning.sweeps.summary` tells at the end what became of all of them.
"""
