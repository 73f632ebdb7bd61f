"""From pixels to a trained model: objective, loop, checkpoints, speed."""
