"""Which gateway a command asks, and as whom."""

import os
from dataclasses import replace

from config import Settings, load_settings
from config.errors import ConfigError
from gateway.secrets import admin_password
from roundhouse import AsyncClient, Client
from roundhouse.session import Access, OnTrouble

# Seconds for which a command that has begun something waits for a gateway that is away.
PATIENCE = 60.0


def base_url(settings: Settings) -> str:
    host = settings.server.host
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.server.port}"


def client() -> Client:
    """Whose trouble is told at once. Where it asks, and as whom, see ``access``."""
    found = access()
    return Client(found.urls, token=found.token, username=found.username, password=found.password, patience=0.0)


def async_client(on_trouble: OnTrouble) -> AsyncClient:
    """For commands that go on where a gateway is lost."""
    found = access()
    return AsyncClient(
        found.urls,
        token=found.token,
        username=found.username,
        password=found.password,
        patience=PATIENCE,
        on_trouble=on_trouble,
    )


def access() -> Access:
    """To ROUNDHOUSE_URL with ROUNDHOUSE_TOKEN or ROUNDHOUSE_USER and _PASSWORD, else to this machine's own.

    Raises ConfigError where another gateway is to be asked, and it is not said as whom: the password that is kept here
    is for this machine's alone.
    """
    environ = os.environ
    if "ROUNDHOUSE_URL" in environ and "ROUNDHOUSE_TOKEN" in environ:
        return Access.of(None, None, None, None, environ)
    settings = load_settings()
    urls = environ.get("ROUNDHOUSE_URL", base_url(settings)).split(",")
    found = Access.of(urls, None, None, None, environ)
    if found.token is not None:
        return found
    password = environ.get("ROUNDHOUSE_PASSWORD")
    if not password:
        if any(url != base_url(settings) for url in found.urls):
            raise ConfigError(
                f"ROUNDHOUSE_URL names a gateway other than this machine's ({base_url(settings)}): "
                "set ROUNDHOUSE_TOKEN, or ROUNDHOUSE_USER and ROUNDHOUSE_PASSWORD, too."
            )
        password = _password(settings)
    return replace(found, username=found.username or "admin", password=password)


def _password(settings: Settings) -> str:
    given = settings.admin_password
    return admin_password(settings.home, given.get_secret_value() if given else None)
