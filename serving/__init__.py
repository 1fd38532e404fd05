"""An HTTP server for a run, with the API that OpenAI's clients speak."""
