"""Forms as they arrive (multipart/form-data, RFC 7578), piece by piece: for those whose files are not held in memory,
nor copied to a disk on their way."""

from collections.abc import AsyncGenerator, AsyncIterable
from dataclasses import dataclass, field
from typing import TypeAlias

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from gateway.problems import Problem


@dataclass(frozen=True, slots=True)
class Part:
    """A part begins. ``filename``: None where it is no file."""

    name: str
    filename: str | None


@dataclass(frozen=True, slots=True)
class Piece:
    """Some bytes of the part that has begun last."""

    data: bytes = field(repr=False)


Event: TypeAlias = Part | Piece


def _problem(what: str) -> Problem:
    return Problem("invalid_multipart", f"The form cannot be read: {what}")


def _boundary(content_type: str) -> bytes:
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise Problem(
            "unsupported_media_type", "Send a form: Content-Type has to be multipart/form-data with its boundary."
        )
    return options[b"boundary"]


class _Reader:
    """What the parser tells, in order. It calls back for each bit of a header."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.ended = False
        self._field = b""
        self._value = b""
        self._disposition: bytes | None = None

    def on_part_begin(self) -> None:
        self._disposition = None

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = self._value
        self._field = self._value = b""

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise _problem("A part of it has no name.")
        filename = options.get(b"filename")
        self.events.append(Part(_text(options[b"name"]), None if filename is None else _text(filename)))

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self.events.append(Piece(data[start:end]))

    def on_end(self) -> None:
        self.ended = True


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


async def form_events(content_type: str, chunks: AsyncIterable[bytes]) -> AsyncGenerator[Event, None]:
    """The parts of a form with what each holds. Whoever leaves early closes ``chunks`` himself.

    Raises Problem ``unsupported_media_type`` or ``invalid_multipart``, the latter also for a form that breaks off.
    """
    reader = _Reader()
    try:
        parser = MultipartParser(
            _boundary(content_type),
            {
                "on_part_begin": reader.on_part_begin,
                "on_header_field": reader.on_header_field,
                "on_header_value": reader.on_header_value,
                "on_header_end": reader.on_header_end,
                "on_headers_finished": reader.on_headers_finished,
                "on_part_data": reader.on_part_data,
                "on_end": reader.on_end,
            },
        )
        async for chunk in chunks:
            parser.write(chunk)
            events, reader.events = reader.events, []
            for event in events:
                yield event
    except FormParserError as error:
        raise _problem(str(error)) from error
    if not reader.ended:
        raise _problem("It breaks off before its closing boundary.")
