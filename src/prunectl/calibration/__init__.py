"""Calibration: samples run forward to gather statistics of each matrix's inputs."""
