"""The settings: what ``config.yaml`` and the environment may say, as frozen, typed models.

Durations are floats in seconds, sizes are ints in bytes. The doc strings under the fields become the
descriptions in ``config/schema.json``, which editors show.
"""

from pathlib import Path
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    StringConstraints,
    model_validator,
)
from pydantic_core import PydanticCustomError

from config.cache import CacheSettings
from config.consistency import inconsistencies
from config.models import (
    ModelEntry,
)
from config.outbound import OutboundSettings
from config.section import Name, Section
from config.values import Bytes, Seconds

Priority: TypeAlias = Literal["high", "normal", "low"]

# Characters.
MIN_PASSWORD = 8
MAX_PASSWORD = 1024

MongodbUri = Annotated[str, StringConstraints(pattern=r"^mongodb(\+srv)?://")]


def _checked_jwt_secret(secret: SecretStr) -> SecretStr:
    if len(secret.get_secret_value()) < 32:
        raise PydanticCustomError("secret", "too short: a signing key has at least 32 characters")
    return secret


def _checked_admin_password(secret: SecretStr) -> SecretStr:
    if secret.get_secret_value().strip().lower() in ("", "admin"):
        raise PydanticCustomError(
            "secret", "may not be empty or 'admin': choose another, or unset it and one is generated"
        )
    if not MIN_PASSWORD <= len(secret.get_secret_value()) <= MAX_PASSWORD:
        raise PydanticCustomError(
            "secret",
            "a password has {least} to {most} characters: choose another, or unset it and one is generated",
            {"least": MIN_PASSWORD, "most": MAX_PASSWORD},
        )
    return secret


JwtSecret = Annotated[SecretStr, AfterValidator(_checked_jwt_secret)]
AdminPassword = Annotated[SecretStr, AfterValidator(_checked_admin_password)]


class ServerSettings(Section):
    """Where the gateway listens and what a request may ask of it."""

    host: Annotated[str, StringConstraints(min_length=1)] = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every interface. Variable: SERVER_HOST."""
    port: int = Field(default=8080, ge=1, le=65535)
    """TCP port. Variable: SERVER_PORT."""
    workers: int = Field(default=1, ge=1, le=256)
    """Gateway processes that share the port."""
    max_upload: Bytes = 10 * 2**20
    """Largest request body in bytes (10MB is 10 * 1024 * 1024)."""
    max_wait: Seconds = 120.0
    """Longest time that a request may wait for its result (`Prefer: wait=N`)."""
    heartbeat: Seconds = 15.0
    """A stream without news says every so often that it is there, so that nobody on the way takes it for dead."""
    origins: list[Annotated[str, StringConstraints(pattern=r"^https?://[^\s/@?#]+$")]] = Field(default=[])
    """Web sites whose pages may connect to `/ws/jobs`, besides the gateway's own, e.g. https://app.example.org."""


class MongodbSettings(Section):
    """The database that keeps the queue."""

    # A URI may hold a password.
    uri: MongodbUri | None = Field(default=None, repr=False)
    """mongodb:// URI of a replica set; unset: the embedded mongod is started. Variable: MONGODB_URI."""
    database: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,63}$")] = "roundhouse"
    """Name of the database."""


class QueueSettings(Section):
    """Leases, polling and retries."""

    lease: Seconds = 30.0
    """How long a claimed job belongs to a worker that is not heard of."""
    poll_interval: Seconds = 1.0
    """How often the queue is looked at when no change notice comes."""
    drain_timeout: Seconds = 30.0
    """How long a worker that is told to stop may go on with its jobs."""
    retry_backoff: Seconds = 1.0
    """Wait before the first retry; it doubles with each attempt."""
    retry_backoff_max: Seconds = 60.0
    """Longest wait before a retry."""
    aging: Seconds = 120.0
    """A waiting job rises one priority level for each such time that it has waited."""
    weights: dict[str, Annotated[float, Field(gt=0, le=1_000_000)]] = Field(default={})
    """Shares of clients (user names) that differ from 1: one of weight 2 gets twice as many turns."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.retry_backoff > self.retry_backoff_max:
            raise PydanticCustomError("order", "retry_backoff may not be longer than retry_backoff_max")
        return self


class Role(Section):
    """What the holders of a role may do."""

    max_priority: Priority = "normal"
    """Highest priority that may be asked for."""


_DEFAULT_ROLES: dict[str, Priority] = {"admin": "high", "service": "high", "user": "normal"}


def _with_default_roles(roles: object) -> object:
    if not isinstance(roles, dict):
        return roles
    return {name: Role(max_priority=level) for name, level in _DEFAULT_ROLES.items()} | roles


class AuthSettings(Section):
    """Tokens and roles."""

    issuer: Annotated[str, StringConstraints(min_length=1)] = "roundhouse"
    """`iss` of the tokens."""
    audience: Annotated[str, StringConstraints(min_length=1)] = "roundhouse"
    """`aud` of the tokens."""
    access_token_ttl: Seconds = 3600.0
    """How long an access token is good for."""
    refresh_token_ttl: Seconds = 30 * 86400.0
    """How long a refresh token is good for."""
    roles: Annotated[dict[Name, Role], BeforeValidator(_with_default_roles)] = Field(
        default_factory=dict, validate_default=True
    )
    """Roles by name, added to admin (high), service (high) and user (normal)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.access_token_ttl > self.refresh_token_ttl:
            raise PydanticCustomError("order", "access_token_ttl may not be longer than refresh_token_ttl")
        return self


class RateLimitSettings(Section):
    """How many requests that submit work a client may send."""

    enabled: bool = True
    """Whether the limit applies."""
    requests_per_minute: int = Field(default=60, ge=1, le=1_000_000)
    """Requests a minute and client."""
    burst: int = Field(default=10, ge=1, le=1_000_000)
    """Requests that may come at once."""
    exempt_roles: list[Name] = Field(default=["service"])
    """Roles without a limit."""


class HistorySettings(Section):
    """What is kept of finished jobs."""

    retention: Seconds = 15 * 86400.0
    """How long a finished job and its result are kept."""


class AutoSwitchSettings(Section):
    """Which models are loaded where their engines take memory that there is not enough of for all."""

    enabled: bool = True
    """Whether models make room for those that are asked for. If not, memory is only filled, in `models`' order."""
    max_swap_wait: Seconds = 600.0
    """How long a job waits for its model before one that is busy has to make room, once that has had its turn."""
    pattern_window_days: int = Field(default=7, ge=1, le=366)
    """Days of usage that the forecast looks at."""
    host_memory: Bytes | None = None
    """Main memory of a worker's machine for models that run without a GPU or sleep; unset: three quarters of what is
    available when the worker starts."""


class DefaultsSettings(Section):
    """Which model serves a request that names none: the first of the list that is available."""

    ocr: list[str] = Field(default=[])
    """Names of models whose task is ocr, best first."""
    chat: list[str] = Field(default=[])
    """Names of models whose task is chat, best first."""


class ConfigFile(Section):
    """The whole of config.yaml."""

    server: ServerSettings = ServerSettings()
    mongodb: MongodbSettings = MongodbSettings()
    queue: QueueSettings = QueueSettings()
    auth: AuthSettings = Field(default_factory=AuthSettings)
    rate_limit: RateLimitSettings = RateLimitSettings()
    history: HistorySettings = HistorySettings()
    auto_switch: AutoSwitchSettings = AutoSwitchSettings()
    cache: CacheSettings = CacheSettings()
    outbound: OutboundSettings = OutboundSettings()
    models: dict[Name, ModelEntry] = Field(default={})
    """The models by name."""
    defaults: DefaultsSettings = DefaultsSettings()

    @model_validator(mode="after")
    def _check(self) -> Self:
        found = inconsistencies(
            self.model_dump(include={"models", "defaults", "auth", "rate_limit"}, exclude_unset=True)
        )
        if found:
            text = "; ".join(f"{'.'.join(map(str, path))}: {message}" for path, message in found)
            raise PydanticCustomError("inconsistent", "{text}", {"text": text})
        return self


class Settings(ConfigFile):
    """The file's settings together with what only the environment gives."""

    config_path: Path
    """The file that was read, absolute."""
    home: Path
    """The state directory, absolute; it need not exist yet."""
    jwt_secret: JwtSecret | None = None
    """JWT_SECRET; None: the gateway generates one and keeps it under ``home``."""
    admin_password: AdminPassword | None = None
    """ADMIN_PASSWORD; None: the gateway generates one and keeps it under ``home``."""

    def resolve(self, name: str) -> str | None:
        """The name of the model that ``name`` (a model's name, alias or LoRA adapter) stands for, or None."""
        if name in self.models:
            return name
        return next((model for model, entry in self.models.items() if name in entry.other_names), None)

    def adapter(self, name: str | None) -> str | None:
        """``name``, where it is that of a LoRA adapter."""
        return name if any(name in entry.adapters for entry in self.models.values()) else None
