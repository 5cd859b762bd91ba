"""The lines of a batch's file: how it is cut into them, and what each one has to be."""

from collections.abc import AsyncGenerator, AsyncIterable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import StringConstraints

from gateway.body import parse_json, validated
from gateway.outbound.guard import UrlRefused
from gateway.outbound.images import require_images
from gateway.payloads import Payload
from gateway.problems import Problem
from gateway.v1.work import Work, work_of

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class LineError(Exception):
    """A line, or the whole file, cannot be taken. ``line`` from 1."""

    def __init__(self, code: str, message: str, param: str | None = None, line: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.line = line


@dataclass(frozen=True, slots=True)
class Line:
    """``number`` from 1, of all lines from where the reading began; ``start``: where it begins, in bytes, and ``end``:
    where the next one does."""

    number: int
    data: bytes = field(repr=False)
    start: int
    end: int


async def lines(chunks: AsyncIterable[bytes], start: int = 0, *, longest: int, most: int) -> AsyncGenerator[Line, None]:
    """The lines of a file that begin at ``start`` or later, without those that are blank.

    Raises LineError ``line_too_long`` at one of more than ``longest`` bytes, and ``too_many_lines`` where more than
    ``most`` come to their end, blank ones included.
    """
    rest, number = b"", 0
    async for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for data in whole:
            number += 1
            if number > most:
                raise LineError("too_many_lines", f"The file has more than {most} lines, blank ones included.")
            end = start + len(data) + 1
            if data.strip():
                yield _line(number, data, start, end, longest)
            start = end
        if len(rest) > longest:
            raise _too_long(number + 1, longest)
    if rest.strip():
        yield _line(number + 1, rest, start, start + len(rest), longest)


def _line(number: int, data: bytes, start: int, end: int, longest: int) -> Line:
    if len(data) > longest:
        raise _too_long(number, longest)
    return Line(number, data.removeprefix(_BYTE_ORDER_MARK), start, end)


def _too_long(number: int, longest: int) -> LineError:
    return LineError("line_too_long", f"The line is longer than {longest} bytes.", line=number)


class BatchLine(Payload):
    """A line of the file that a batch is made of."""

    custom_id: Annotated[str, StringConstraints(min_length=1, max_length=512)]
    """Yours: the answers are told apart by it."""
    method: Literal["POST"]
    url: str
    """The batch's `endpoint`."""
    body: dict[str, Any]
    """As it would be sent there, without `stream`."""


@dataclass(frozen=True, slots=True)
class Request:
    custom_id: str
    work: Work


def custom_id_of(data: bytes) -> str:
    """Of a line that has been found to be good."""
    return str(parse_json(data)["custom_id"])


def request_of(data: bytes, endpoint: str) -> Request:
    """What a line asks for. Raises LineError."""
    try:
        content = parse_json(data)
    except Problem as problem:
        raise LineError("invalid_json_line", f"The line is no JSON: {problem.message}") from problem
    try:
        line = validated(BatchLine, content)
    except Problem as problem:
        raise LineError("invalid_line", problem.message, _param(problem)) from problem
    if line.url != endpoint:
        raise LineError("mismatched_url", f"The batch is for {endpoint}, and not for {line.url!r}.", "url")
    try:
        work = work_of(endpoint, line.body)
        require_images(work.payload)
    except Problem as problem:
        raise LineError(problem.code, problem.message, _param(problem, "body")) from problem
    except UrlRefused as error:
        raise LineError(error.code, error.message, "body.messages") from error
    if work.stream:
        raise LineError("stream_not_allowed", "A batch has no streams; leave stream out.", "body.stream")
    return Request(line.custom_id, work)


def _param(problem: Problem, within: str = "") -> str | None:
    faults = problem.details.get("errors")
    if not (isinstance(faults, list) and faults and isinstance(faults[0], dict)):
        return within or None
    return ".".join(part for part in (within, str(faults[0]["loc"])) if part) or None
