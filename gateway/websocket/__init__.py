"""``/ws/jobs``: many jobs on one WebSocket."""
