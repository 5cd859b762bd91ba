"""Which models the servers of an entry list themselves, looked for again and again."""

import asyncio
import logging
from collections.abc import Sequence
from fnmatch import fnmatchcase

from broker.errors import EngineError
from worker.backends.backend import Backend

log = logging.getLogger(__name__)

# Seconds between two looks, and so many looks in vain until what was listed is forgotten.
EVERY = 10.0
PATIENCE = 3
# What a worker tells of an entry is part of each of its heartbeats.
MOST_NAMES = 500
LONGEST_NAME = 128


class Discovery:
    """``allowed``: patterns of the names that may be asked for, which are told first where there are many."""

    def __init__(self, backends: Sequence[Backend], allowed: Sequence[str]) -> None:
        self._backends = backends
        self._allowed = allowed
        self._vain = dict.fromkeys((backend.name for backend in backends), 0)

    def names(self) -> tuple[str, ...]:
        """All that are listed, allowed or not."""
        known = sorted({name for backend in self._backends for name in backend.listed})
        known.sort(key=lambda name: not any(fnmatchcase(name, pattern) for pattern in self._allowed))
        return tuple(known[:MOST_NAMES])

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.gather(*(self._look(backend) for backend in self._backends))
            await asyncio.sleep(EVERY)

    async def _look(self, backend: Backend) -> None:
        try:
            async with asyncio.timeout(EVERY):
                listed = await backend.upstream.models()
        except (EngineError, TimeoutError) as error:
            log.warning("the models of %s cannot be listed: %s", backend.title, error or "it takes too long")
            self._in_vain(backend)
        except Exception:
            # Nobody would notice that the search has ended.
            log.exception("the models of %s cannot be listed", backend.title)
            self._in_vain(backend)
        else:
            self._vain[backend.name] = 0
            backend.listed = frozenset(name for name in listed if 1 <= len(name) <= LONGEST_NAME and name.isprintable())

    def _in_vain(self, backend: Backend) -> None:
        self._vain[backend.name] += 1
        if self._vain[backend.name] >= PATIENCE:
            backend.listed = frozenset()
