"""Weights in and out of the formats of others: Hugging Face directories and GGUF files."""
