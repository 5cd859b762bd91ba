"""The ``roundhouse`` command, from the side of its user."""
