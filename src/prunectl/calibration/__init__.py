"""Calibration: samples that are run forward so that a method sees what each layer is fed."""
