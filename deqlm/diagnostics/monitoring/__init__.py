"""What solves came to over a training run."""
