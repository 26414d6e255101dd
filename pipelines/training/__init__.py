"""A training run: the driver, the workers of Ray Train, their stream of data, messages and checkpoints."""
