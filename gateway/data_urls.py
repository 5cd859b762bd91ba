"""What is in ``data:`` URLs."""

import base64


def decoded(text: str) -> tuple[bytes, bytes]:
    """Base64 as it stands after the comma of a ``data:`` URL (RFC 2397), without the line breaks that may be in it, and
    what it stands for. Raises ValueError."""
    encoded = text.encode("ascii").translate(None, b" \t\r\n")
    return encoded, base64.b64decode(encoded, validate=True)
