"""Several processes that work on one command, as torchrun and accelerate start them."""
