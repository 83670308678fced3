"""Several processes that work on one command, started by torchrun or ``accelerate launch``."""
