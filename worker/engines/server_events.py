"""Server-sent events, taken out of a body as it comes (WHATWG HTML, section 9.2.6)."""

from broker.errors import EngineError

# Bytes of an event. What is in it has to go into a document of 16 MB.
LONGEST = 16 * 2**20


class ServerEvents:
    """Only their data: the servers that are asked here name no events and number none."""

    def __init__(self) -> None:
        self._rest: list[bytes] = []
        self._data: list[str] = []
        self._held = 0
        self._after_cr = False

    def feed(self, piece: bytes) -> list[str]:
        """The data of each event that ``piece`` brings to its end. Raises EngineError ``bad_answer``."""
        if self._after_cr and piece.startswith(b"\n"):
            piece = piece[1:]
        self._after_cr = piece.endswith(b"\r")
        if self._held > LONGEST:
            raise EngineError(f"The upstream sent an event of more than {LONGEST:,} bytes.", code="bad_answer")
        self._rest.append(piece)
        self._held += len(piece)
        if b"\n" not in piece and b"\r" not in piece:
            return []  # joined with each piece, a long line would take the square of its length
        lines = b"".join(self._rest).splitlines(keepends=True)
        self._rest = [lines.pop()] if not lines[-1].endswith((b"\n", b"\r")) else []
        return [data for line in lines if (data := self._add(line.rstrip(b"\r\n"))) is not None]

    def _add(self, line: bytes) -> str | None:
        """The data of the event that ends with this line, if any."""
        if not line:
            data, self._data, self._held = self._data, [], sum(map(len, self._rest))
            return "\n".join(data) if data else None
        name, _, value = line.partition(b":")
        if name.removeprefix(b"\xef\xbb\xbf") == b"data":
            self._data.append(value.removeprefix(b" ").decode(errors="replace"))
        return None
