"""Sweeps: each job runs in its own process and records its state in its own folder.

Hydra's launchers call :func:`captioning.sweeps.jobs.run_job` for each job, in the main process, in
a Ray worker or in a SLURM task. It starts :mod:`captioning.sweeps.job_process`, which trains.
:mod:`captioning.sweeps.summary` reports the outcome of all jobs at the end.
"""
