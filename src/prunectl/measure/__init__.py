"""Exact measurements of weights, streamed and cached, and the thresholds that follow from them."""
