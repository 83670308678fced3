"""``bench``: what a model costs to run on the device at hand, measured."""
