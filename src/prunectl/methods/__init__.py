"""Pruning mathematics with calibration statistics: tensors in, weight and mask out.

Pure functions in fp32 on the device of their inputs, deterministic. A weight is [out, in]: its rows
make outputs, and its columns take the inputs whose statistics are gathered. A caller whose matrix
lies the other way round (GPT-2's Conv1D) transposes it first.
"""
