"""The training loop, one training step, logs."""
