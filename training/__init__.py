"""Batches, optimizers, schedules, the loop, checkpoints, distribution and tracking."""
