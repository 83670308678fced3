"""Errors of layouts."""


class Misfit(ValueError):
    """The tensor cannot be stored in this layout; the message states why."""


class Damaged(ValueError):
    """The parts are not those of a tensor of this dtype and shape; the message states why."""
