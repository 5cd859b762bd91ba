"""The broker: the job's durable record and everything that decides about it. No HTTP, no engines."""
