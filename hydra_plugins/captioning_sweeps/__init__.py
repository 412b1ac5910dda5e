"""Launchers and a sweeper for Hydra that survive failed jobs.

Hydra discovers plugins only in ``hydra_plugins`` and imports all of these modules whenever it
starts. Slow imports are therefore made inside the functions that need them.

- :mod:`ray_launcher` extends hydra-ray-launcher: it gives each job its own GPU, and a worker that
  dies does not end the sweep.
- :mod:`slurm_launcher` extends hydra-submitit-launcher: a job that dies does not end the sweep.
- :mod:`optuna_sweeper` replaces hydra-optuna-sweeper, which needs Optuna 2. That version cannot
  store a study on disk with current SQLAlchemy, stops at the first NaN, and cannot resume a study.
"""
