"""Why a layout does not hold a tensor."""


class Misfit(ValueError):
    """The tensor cannot be stored in this layout; the message says why."""


class Damaged(ValueError):
    """No tensor of this dtype and shape is stored as these parts; the message says why."""
