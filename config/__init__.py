"""config.yaml and the environment, read once at start into frozen, typed settings."""

from typing import TYPE_CHECKING, Any

from config.errors import JSON, ConfigError, RoundhouseError

if TYPE_CHECKING:
    from config.loader import load_settings
    from config.models import (
        ModelEntry,
        ModelSettings,
        OpenaiSettings,
        RapidocrSettings,
        ReaderSettings,
        Resolution,
        SimulatorSettings,
        Task,
        TesseractSettings,
        VllmSettings,
    )
    from config.settings import (
        AuthSettings,
        AutoSwitchSettings,
        DefaultsSettings,
        HistorySettings,
        MongodbSettings,
        Priority,
        QueueSettings,
        RateLimitSettings,
        Role,
        ServerSettings,
        Settings,
    )

__all__ = [
    "JSON",
    "AuthSettings",
    "AutoSwitchSettings",
    "ConfigError",
    "DefaultsSettings",
    "HistorySettings",
    "ModelEntry",
    "ModelSettings",
    "MongodbSettings",
    "OpenaiSettings",
    "Priority",
    "QueueSettings",
    "RapidocrSettings",
    "RateLimitSettings",
    "ReaderSettings",
    "Resolution",
    "Role",
    "RoundhouseError",
    "ServerSettings",
    "Settings",
    "SimulatorSettings",
    "Task",
    "TesseractSettings",
    "VllmSettings",
    "load_settings",
]


def __getattr__(name: str) -> Any:
    # Loaded when asked for: the children that read documents need `config.errors` alone, and start a
    # third of a second sooner without pydantic and YAML.
    if name == "load_settings":
        from config.loader import load_settings

        return load_settings
    if name in __all__:
        from config import models, settings

        return getattr(models if hasattr(models, name) else settings, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
