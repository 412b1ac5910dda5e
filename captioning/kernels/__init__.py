"""Fast implementations of a few operations.

:mod:`captioning.kernels.ops` is the one door: models, objectives and decoding import from there.
:mod:`captioning.kernels.reference` defines each op in plain PyTorch, and
:mod:`captioning.kernels.backend` chooses what computes it.
"""
