"""The interface that OpenAI's clients speak, on the same admission path as tasks."""
