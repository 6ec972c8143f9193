"""The Messages API that Anthropic's clients speak, on the same admission path as tasks."""
