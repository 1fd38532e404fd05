"""Examples for supervised fine-tuning: files of prompts, conversations or texts in, token ids with a mask out."""
