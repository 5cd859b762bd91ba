"""What the configuration says of answers that are used again."""

from pydantic import Field

from config.section import Section
from config.values import Seconds


class ModelCacheSettings(Section):
    """Of one model, whose answers are used again where it is there."""

    ttl: Seconds | None = None
    """How long an answer is used again; unset: as `cache.ttl` says."""
    any_temperature: bool = False
    """Whether what was asked for at another temperature than 0 is answered the same each time, too."""


class CacheSettings(Section):
    """Answers to chats, completions and embeddings that are used again, of models whose entry has a `cache`, and of
    requests that say `X-Cache: on`."""

    ttl: Seconds = 3600.0
    """How long an answer is used again."""
    max_entries: int = Field(default=10_000, ge=1, le=10_000_000)
    """How many there are at most; the one that was not used for the longest time goes first."""
