"""The mathematics of pruning with calibration statistics: tensors in, weight and mask out.

Pure functions in fp32 on the device of their inputs, deterministic. A weight is [out, in]: its rows
make outputs, and its columns take the inputs whose statistics are gathered. The caller transposes a
matrix with the other orientation (GPT-2's Conv1D) first.
"""
