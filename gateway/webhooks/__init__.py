"""Webhooks: being told that a job has ended."""
