"""What happens beside the training: checkpoints, early stopping, averaging, logs and images."""
