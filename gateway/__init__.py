"""The gateway: the thin HTTP layer over the broker. No model code, and nothing that loads an engine."""
