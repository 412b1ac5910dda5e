"""The commands that compose a configuration with Hydra, one module each.

``python train.py`` in a checkout and ``captioning train`` of an installed package run the same
module. Lightning starts the other processes of ``trainer=ddp`` by the name of the module.
"""
