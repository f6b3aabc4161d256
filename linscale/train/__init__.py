"""Training: config.py says what a run is, trainer.py is the loop, optim.py and metrics.py serve it."""
