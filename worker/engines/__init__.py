"""Engines: adapters behind one protocol, see ``base``."""
