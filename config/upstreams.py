"""Entries for models that run elsewhere, behind servers that speak OpenAI's API."""

import re
from typing import Annotated, Literal, TypeAlias
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, StringConstraints
from pydantic_core import PydanticCustomError

from config.section import Name, Section
from config.values import Seconds, Word

Pattern = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Balance: TypeAlias = Literal["round_robin", "weight", "least_busy", "latency"]

# Headers that say where a request goes, how long it is and what its body and its answer are.
_OF_EACH_REQUEST = frozenset(
    {
        "accept-encoding",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "host",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


def _checked_address(address: str) -> str:
    try:
        parts = urlsplit(address)
        there_can_be = bool(parts.hostname) and parts.port != 0
    except ValueError:  # no port, or no address of IPv6
        there_can_be = False
    if not there_can_be:
        raise PydanticCustomError("address", "expected an address with a host and a port that there can be")
    return address


def _checked_header(name: str) -> str:
    if name.lower() in _OF_EACH_REQUEST:
        raise PydanticCustomError("header", "each request has this header of its own")
    return name


def _checked_key(secret: SecretStr) -> SecretStr:
    key = secret.get_secret_value().strip()  # files of secrets end with a line's end
    if re.fullmatch(r"[!-~]+", key) is None:
        raise PydanticCustomError("api_key", "expected a key of visible ASCII characters, without spaces")
    return SecretStr(key)


def _checked_value(secret: SecretStr) -> SecretStr:
    value = secret.get_secret_value().strip()
    if re.fullmatch(r"[ -~]*", value) is None:
        raise PydanticCustomError("header", "expected a header's value: visible ASCII characters and spaces")
    return SecretStr(value)


Address = Annotated[
    str, StringConstraints(pattern=r"^https?://[^\s/@?#]+(/[^\s@?#]*)?$"), AfterValidator(_checked_address)
]
HeaderName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}$"), AfterValidator(_checked_header)
]
ApiKey = Annotated[SecretStr, AfterValidator(_checked_key)]
HeaderValue = Annotated[SecretStr, AfterValidator(_checked_value)]


class BackendSettings(Section):
    """One of several servers that serve the same model."""

    name: Name
    """What requests call it by `modelKey`, and operators see."""
    base_url: Address
    """Address up to and with /v1, without credentials."""
    api_key: ApiKey | None = None
    """Bearer token for the upstream; best written ${env:NAME}."""
    model: Annotated[str, StringConstraints(min_length=1)] | None = None
    """What this server calls the model; unset: as the entry says."""
    headers: dict[HeaderName, HeaderValue] = Field(default={})
    """Further headers, such as Azure's api-key."""
    query: dict[str, Word] = Field(default={})
    """Parameters that go into each address, such as Azure's api-version."""
    weight: float = Field(default=1.0, ge=0.001, le=1000)
    """Its share of the requests, with `balance: weight`."""
    max_concurrent: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Requests that a worker has under way there at once; unset: as many as the entry lets run."""


class BreakerSettings(Section):
    """When a backend that fails is left alone for a while."""

    failures: int = Field(default=5, ge=1, le=1000)
    """So many failed requests within `window`, and at least half of those that ended in it, keep the next ones away."""
    window: Seconds = 60.0
    """Failures that lie further back are forgotten."""
    pause: Seconds = 30.0
    """How long it is left alone before one request may try whether it is back."""


class UpstreamSettings(Section):
    """What an entry says of the servers that serve its model."""

    base_url: Address | None = None
    """Address up to and with /v1, without credentials."""
    api_key: ApiKey | None = None
    """Bearer token for the upstream; best written ${env:NAME}."""
    headers: dict[HeaderName, HeaderValue] = Field(default={})
    """Further headers, such as Azure's api-key."""
    query: dict[str, Word] = Field(default={})
    """Parameters that go into each address, such as Azure's api-version."""
    connect_timeout: Seconds = 10.0
    """Longest wait for a connection."""
    read_timeout: Seconds | None = None
    """Longest silence, also before the first token and between two; unset: `timeout`, which bounds the whole answer."""
    backends: list[BackendSettings] = Field(default=[])
    """Several servers of the same model, in place of base_url, api_key, headers and query."""
    balance: Balance = "round_robin"
    """How one of the backends is chosen: in turn, by weight, the one with the fewest requests under way, or the one
    that answered soonest of late."""
    breaker: BreakerSettings = BreakerSettings()
    """When a backend that fails is left alone for a while."""
    allowed_models: list[Pattern] | None = None
    """Patterns (*, ?, [abc]) of further models of the upstream, which requests may name as its /v1/models does; unset:
    none, and it is not asked."""

    def servers(self, name: str) -> list[BackendSettings]:
        """All servers of the entry ``name``; one upstream is a backend of that name."""
        if self.backends:
            return list(self.backends)
        assert self.base_url is not None, "config.consistency has let it pass"
        return [
            BackendSettings(
                name=name, base_url=self.base_url, api_key=self.api_key, headers=self.headers, query=self.query
            )
        ]
