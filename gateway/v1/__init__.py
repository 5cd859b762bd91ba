"""OpenAI's API, as views of the same jobs."""
