"""How good a run is: perplexity by source, n-gram baselines on the same tokens, and a report to read."""
