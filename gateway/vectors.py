"""Vectors in results."""

import base64
import struct


def numbers(vector: str) -> list[float]:
    """From little-endian float32 in base64, as results keep them."""
    data = base64.b64decode(vector)
    return list(struct.unpack(f"<{len(data) // 4}f", data))
