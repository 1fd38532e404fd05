"""The tasks of EleutherAI's lm-evaluation-harness, and some of our own, on a run."""
