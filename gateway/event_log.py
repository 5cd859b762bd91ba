"""The events of a job, as pure code: what somebody has yet to be told who knows so much, and what he knows then.

An event's id says all that whoever has got it knows: whichever process he comes back to can tell what is new to him.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel

from broker.chunk_feed import Place
from broker.chunks import Chunk
from broker.page_feed import Standing
from broker.pages import ENDED
from gateway.documents import page_ranges
from gateway.documents.page_ranges import Ranges
from gateway.documents.schemas import EndEvent, PageEvent, ProgressEvent, RestartEvent, StateEvent, TokenEvent

# Characters of an id; there are more of them only where hundreds of pages ended with a gap after each.
LONGEST = 4_000
# Pages that were begun and have not ended; engines have far fewer places.
MOST_BEGUN = 1_000
# In place of the token of an attempt: what it generated is not there piece by piece.
NO_TOKEN = "0" * 32
_ID = re.compile(
    r"([a-z]+)\.([0-9]{1,9});([0-9]{1,9})/([0-9]{1,9}|\?);([0-9,-]*);([0-9,-]*)(?:;([0-9a-f]{32})-([0-9]{1,9}))?(;end)?"
)


@dataclass(frozen=True, slots=True)
class Known:
    """What has been told of a job: its state, its progress, the pages that were begun or have ended, and its answer up
    to ``place``."""

    state: tuple[str, int] | None = None
    progress: tuple[int, int | None] = (0, None)
    ended: Ranges = ()
    begun: frozenset[int] = frozenset()
    place: Place | None = None
    over: bool = False

    def __str__(self) -> str:
        """As the id of the event after which so much is known."""
        status, attempts = self.state or ("none", 0)
        done, total = self.progress
        begun = page_ranges.written(page_ranges.of(self.begun))
        pages = f"{page_ranges.written(self.ended)};{begun}"
        place = "" if self.place is None else f";{self.place.token}-{self.place.told}"
        end = ";end" if self.over else ""
        return f"{status}.{attempts};{done}/{'?' if total is None else total};{pages}{place}{end}"

    @classmethod
    def read(cls, text: str | None) -> "Known":
        """From an id. Of what was none nothing is known: all is told from the start."""
        found = _ID.fullmatch((text or "")[: LONGEST + 1])
        if found is None:
            return cls()
        status, attempts, done, total, ended, begun, token, told_of_it, over = found.groups()
        try:
            told, open_ = [page_ranges.parse(part, LONGEST) if part else () for part in (ended, begun)]
        except ValueError:
            return cls()
        if sum(last - first + 1 for first, last in open_) > MOST_BEGUN:
            return cls()  # forged: numbering them would take long
        return cls(
            None if status == "none" else (status, int(attempts)),
            (int(done), None if total == "?" else int(total)),
            told,
            frozenset(number for first, last in open_ for number in range(first, last + 1)),
            None if token is None else Place(token, int(told_of_it)),
            over is not None,
        )


@dataclass(frozen=True, slots=True)
class Event:
    """``known``: what is known with it."""

    name: str
    data: BaseModel
    known: Known

    def encode(self) -> bytes:
        """As an event stream has it (HTML Living Standard, 9.2.5)."""
        return f"id: {self.known}\nevent: {self.name}\ndata: {self.data.model_dump_json()}\n\n".encode()


def events(known: Known, standing: Standing) -> Iterator[Event]:
    """What is new, in order. A job's last state comes after its pages, and then its end."""
    over = standing.status.terminal
    sources = (_pages, _progress, _state, _end) if over else (_state, _pages, _progress)
    for source in sources:
        for event in source(known, standing):
            known = event.known
            yield event


def pieces(known: Known, chunk: Chunk) -> Iterator[Event]:
    """Those of an answer. ``chunk`` follows on what is known, or begins the answer of another attempt."""
    for number, choices in enumerate(chunk.events, chunk.first + 1):
        known = replace(known, place=Place(chunk.token, number))
        yield Event("token", _token(json.loads(choices)), known)


def restarted(known: Known, token: str) -> Event:
    """What was told of the answer is void: another attempt generates it anew."""
    return Event("restart", RestartEvent(), replace(known, place=Place(token, 0)))


def whole_answer(known: Known, choices: Sequence[Mapping[str, Any]], place: Place) -> Iterator[Event]:
    """Of an answer whose pieces are not there (any more): the whole of it as one, after what makes the rest void.
    ``place``: its end."""
    if known.place == place:
        return
    if known.place is not None and known.place.told:
        yield restarted(known, place.token)
    yield Event("token", _token(choices), replace(known, place=place))


def _token(choices: Sequence[Mapping[str, Any]]) -> TokenEvent:
    texts = (piece.get("text") or piece.get("delta", {}).get("content") for piece in choices if piece["index"] == 0)
    return TokenEvent(text="".join(text for text in texts if text), choices=[dict(piece) for piece in choices])


def _state(known: Known, standing: Standing) -> Iterator[Event]:
    state = (standing.status.value, standing.attempts)
    if state != known.state:
        data = StateEvent.model_validate({"status": state[0], "attempts": state[1]})
        yield Event("state", data, replace(known, state=state))


def _pages(known: Known, standing: Standing) -> Iterator[Event]:
    for number in sorted(standing.pages):
        state = standing.pages[number]
        if page_ranges.contains(known.ended, number) or (state not in ENDED and number in known.begun):
            continue
        if state in ENDED:
            ended = page_ranges.merged((*known.ended, (number, number)))
            known = replace(known, ended=ended, begun=known.begun - {number})
        else:
            known = replace(known, begun=known.begun | {number})
        yield Event("page", PageEvent.model_validate({"number": number, "status": state}), known)


def _progress(known: Known, standing: Standing) -> Iterator[Event]:
    total = None if standing.progress is None else standing.progress["total"]
    progress = (sum(state in ENDED for state in standing.pages.values()), total)
    if progress != known.progress:
        data = ProgressEvent(done=progress[0], total=total, unit="pages")
        yield Event("progress", data, replace(known, progress=progress))


def _end(known: Known, standing: Standing) -> Iterator[Event]:
    if known.over:
        return
    error = standing.error and {"code": standing.error["code"], "message": standing.error["message"]}
    yield Event(
        "end", EndEvent.model_validate({"status": standing.status.value, "error": error}), replace(known, over=True)
    )
