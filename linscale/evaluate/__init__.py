"""Evaluation: what a checkpoint is worth. Reads run folders; knows nothing of training."""
