"""The interface between Hydra and the package.

No other package imports Hydra, except for the commands themselves in :mod:`captioning.scripts` and
the launchers and the search in ``hydra_plugins``. Nothing here imports torch before a task begins,
so that ``--help`` and mistakes on the command line are quick.
"""
