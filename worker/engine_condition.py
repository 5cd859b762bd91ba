"""How a loaded engine is: whether it is well, and what it holds."""

import asyncio
import logging
from dataclasses import dataclass, replace
from time import monotonic

from worker.engines.base import Footprint, Loadable

log = logging.getLogger(__name__)

# Seconds for an engine to say how it is.
ANSWER = 5.0
# Seconds between two looks at what an engine holds: the kernel has to walk through all its memory.
WEIGH = 15.0


@dataclass(frozen=True, slots=True)
class Condition:
    """``weighed``: when the footprint was looked at, by the monotonic clock."""

    healthy: bool | None = None
    footprint: Footprint | None = None
    weighed: float = float("-inf")

    @property
    def memory(self) -> int | None:
        """Bytes on each of its devices."""
        return None if self.footprint is None else self.footprint.device


NOT_LOADED = Condition()


async def examine(name: str, engine: Loadable, before: Condition = NOT_LOADED) -> Condition:
    """``before``: how it was in the same state of it; what it holds is not asked anew each time then. Never raises."""
    try:
        async with asyncio.timeout(ANSWER):
            healthy = await engine.healthy()
            if monotonic() - before.weighed < WEIGH:
                return replace(before, healthy=healthy)
            return Condition(healthy, await engine.footprint(), monotonic())
    except TimeoutError:
        log.warning("the engine of %s does not say how it is", name)
    except Exception:
        # Whatever an engine raises that it should not: the model must not hang on our bug.
        log.exception("the engine of %s cannot say how it is", name)
    return replace(before, healthy=False)
