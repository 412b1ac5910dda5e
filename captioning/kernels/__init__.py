"""Fast implementations of a few operations.

:mod:`captioning.kernels.ops` is the interface from which models, objectives and decoding import.
:mod:`captioning.kernels.reference` defines each op in plain PyTorch, and
:mod:`captioning.kernels.backend` chooses what computes it.
"""
