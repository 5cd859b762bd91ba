"""Which gateway a command asks, and as whom."""

import os
from collections.abc import Mapping
from dataclasses import replace

import httpx

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

    Raises ConfigError for what cannot be sent, and where another gateway is to be asked, and it is not said as whom:
    the password that is kept here is for this machine's alone.
    """
    environ = os.environ
    _check_identity(environ)
    # A variable that is empty says as little as one that is not there.
    said = environ.get("ROUNDHOUSE_URL")
    if said and environ.get("ROUNDHOUSE_TOKEN"):
        return Access.of(_urls(said), None, None, None, environ)
    settings = load_settings()
    found = Access.of(_urls(said) if said else base_url(settings), None, None, None, environ)
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


def sendable(text: str) -> bool:
    """Whether it is text as requests carry it; an argument or a variable may be of any bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_identity(environ: Mapping[str, str]) -> None:
    """Raises ConfigError, which does not show a token or a password."""
    token = environ.get("ROUNDHOUSE_TOKEN", "")
    if not (token.isascii() and token.isprintable()):
        raise ConfigError(
            "ROUNDHOUSE_TOKEN is no token, which is a line of ASCII characters: set it to the access_token that "
            "POST /auth/token answers."
        )
    for name in ("ROUNDHOUSE_USER", "ROUNDHOUSE_PASSWORD"):
        if not sendable(environ.get(name, "")):
            raise ConfigError(f"{name} is not in UTF-8; set it anew, in a terminal whose encoding is UTF-8.")


def _urls(said: str) -> list[str]:
    """Those of ROUNDHOUSE_URL. Raises ConfigError."""
    urls = [url.strip() for url in said.split(",")]
    for url in urls:
        if not _may_be_asked(url):
            raise ConfigError(
                f"ROUNDHOUSE_URL is to be like http://localhost:8080, or several such with commas between: {url!r} is "
                "no such URL."
            )
    return urls


def _may_be_asked(url: str) -> bool:
    try:
        parsed = httpx.URL(url)
        # As is done to look it up, which finds fault with names that a URL may have.
        host = parsed.raw_host.decode("ascii").encode("idna")
    except (ValueError, httpx.InvalidURL):
        return False
    in_range = parsed.port is None or 0 < parsed.port < 2**16
    return parsed.scheme in ("http", "https") and bool(host) and in_range


def _password(settings: Settings) -> str:
    given = settings.admin_password
    try:
        return admin_password(settings.home, given.get_secret_value() if given else None)
    except ConfigError as error:
        raise ConfigError(
            f"{error.message} Or say as whom to ask, by ROUNDHOUSE_TOKEN, or ROUNDHOUSE_USER and ROUNDHOUSE_PASSWORD."
        ) from error
