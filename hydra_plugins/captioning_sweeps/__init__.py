"""What sweeps need of Hydra and its plugins, mended in one place.

Hydra looks for plugins in ``hydra_plugins`` alone, and imports each of these modules whenever it
starts: what takes time is imported where it is used.

- :mod:`ray_launcher` is hydra-ray-launcher with a GPU for each job. There, a worker that dies takes
  the sweep with it.
- :mod:`slurm_launcher` is hydra-submitit-launcher; there, likewise.
- :mod:`optuna_sweeper` is in place of hydra-optuna-sweeper, which needs Optuna 2: that keeps no
  study on disk with today's SQLAlchemy, ends at the first NaN, and starts over when it is resumed.
"""
