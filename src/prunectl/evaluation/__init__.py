"""The ``evaluate`` verb: how good a model is, by a metric whose protocol is stated."""
