"""Studies of a model: what sparsity costs, measured along a curve."""
