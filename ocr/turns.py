"""Whose page is read next: documents share an engine's places page by page."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager


def next_turn(waiting: Iterable[int], running: Mapping[int, int]) -> int:
    """Of the documents that wait with a page (oldest first), the one with the fewest pages under way."""
    return min(waiting, key=lambda document: running.get(document, 0))


class PageTurns:
    """`places`: pages that an engine reads at once, over all documents. It may be changed at any time."""

    def __init__(self, places: int) -> None:
        self.places = places
        self._running: Counter[int] = Counter()
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []

    @asynccontextmanager
    async def take(self, document: object) -> AsyncIterator[None]:
        """Enters when it is the turn of a page of `document`."""
        key = id(document)
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((key, turn))
        self._grant()
        try:
            await turn
        except BaseException:
            self._give_up(key, turn)
            raise
        try:
            yield
        finally:
            self._leave(key)

    def _grant(self) -> None:
        while self._waiting and self._running.total() < self.places:
            key = next_turn((document for document, _ in self._waiting), self._running)
            index = next(place for place, (document, _) in enumerate(self._waiting) if document == key)
            _, turn = self._waiting.pop(index)
            self._running[key] += 1
            turn.set_result(None)

    def _give_up(self, key: int, turn: asyncio.Future[None]) -> None:
        """Cancelled while it waited, or in the very moment in which it was granted."""
        if turn.done() and not turn.cancelled():
            self._leave(key)
        else:
            self._waiting.remove((key, turn))

    def _leave(self, key: int) -> None:
        self._running[key] -= 1
        if not self._running[key]:
            del self._running[key]
        self._grant()
