"""Stand-in for the module of the same name on another branch; replaced at the merge."""

from torch import nn


class Objective(nn.Module):
    """What a captioner is trained to minimise."""
