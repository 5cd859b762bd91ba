"""The worker: claims jobs and runs them on engines."""
