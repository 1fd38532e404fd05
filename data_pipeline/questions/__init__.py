"""Questions and answers made from facts, for fine-tuning."""
