"""Training: a task (model + losses), the optimiser, checkpoints, and the one loop."""
