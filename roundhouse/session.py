"""One client's standing with its gateways: where it asks, as whom, and what it bears before it gives up."""

import logging
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import httpx

from roundhouse.errors import DeadlinePassed, RoundhouseApiError, Unreachable, refusal, too_late, understood
from roundhouse.retry import Trouble, elsewhere, passes
from roundhouse.wire import Request, Wire

log = logging.getLogger("roundhouse")

URL = "http://127.0.0.1:8080"
_UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_HEALTH = Request("GET", "/health", public=True)
# Seconds after which a proxy that gives up has waited for an answer, and has not just found nobody to ask.
AT_ONCE = 1.0

OnTrouble = Callable[[RoundhouseApiError, float], None]
"""Called with what went wrong, and the seconds until it is tried again."""


@dataclass(frozen=True, slots=True)
class Access:
    """Where, and as whom. ``urls``: gateways of one system, each without a path."""

    urls: Sequence[str]
    token: str | None = field(default=None, repr=False)
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        urls: str | Sequence[str] | None,
        token: str | None,
        username: str | None,
        password: str | None,
        environ: Mapping[str, str],
    ) -> "Access":
        """What is not given is as ROUNDHOUSE_URL (one, or several with commas between), ROUNDHOUSE_TOKEN,
        ROUNDHOUSE_USER and ROUNDHOUSE_PASSWORD say."""
        # A variable that is empty says as little as one that is not there.
        found = (environ.get("ROUNDHOUSE_URL") or URL).split(",") if urls is None else urls
        found = [url.strip().rstrip("/") for url in ([found] if isinstance(found, str) else found)]
        if not found or not all(url.startswith(("http://", "https://")) for url in found):
            raise ValueError(f"A gateway's URL begins with http:// or https://, not as in {found}.")
        if token is None:
            if username is None:
                token, username = environ.get("ROUNDHOUSE_TOKEN") or None, environ.get("ROUNDHOUSE_USER") or None
            password = environ.get("ROUNDHOUSE_PASSWORD") if password is None else password
        return cls(found, token, username, password)


class Session:
    """``patience``: seconds for which trouble is borne that may pass. It may be changed at any time."""

    def __init__(self, wire: Wire, access: Access, patience: float, on_trouble: OnTrouble | None) -> None:
        self.wire = wire
        self.patience = patience
        self._urls = list(access.urls)
        self._at = 0
        self._access_token = access.token
        self._refresh_token: str | None = None
        self._login = (access.username, access.password)
        self._sign_in_failed: RoundhouseApiError | None = None
        self._on_trouble = on_trouble

    @property
    def at(self) -> int:
        """The number of the gateway that is asked now."""
        return self._at

    @property
    def url(self) -> str:
        """The gateway that is asked now."""
        return self._urls[self._at]

    def trouble(self, patience: float | None = None) -> Trouble:
        """``patience``: None for the client's own."""
        return Trouble(self.patience if patience is None else patience, len(self._urls))

    async def send(
        self,
        request: Request,
        *,
        deadline: float | None = None,
        trouble: Trouble | None = None,
        stream: bool = False,
    ) -> httpx.Response:
        """The response, which is a success; whole, unless as a ``stream``. ``deadline``: of ``monotonic()``.

        Raises RoundhouseApiError.
        """
        trouble = trouble or self.trouble()
        renewed = False
        while True:
            url, token = self._at, "" if request.public else await self._token(deadline)
            asked = monotonic()
            try:
                return await self._once(request, token, deadline, stream=stream)
            except RoundhouseApiError as error:
                may_renew = error.status == 401 and not request.public and not renewed
                if may_renew and await self._renew(token, deadline):
                    renewed = True
                elif request.waits and _takes_long(error, monotonic() - asked):
                    # Nothing is wrong with an answer that takes long, unless nobody is there to give it.
                    await self.send(_HEALTH, deadline=deadline, trouble=trouble)
                    trouble.over()
                    renewed = False
                elif request.repeatable or _undone(error):
                    await self.bear(error, trouble, deadline, url)
                else:
                    raise

    async def json(self, request: Request, *, deadline: float | None = None) -> dict[str, Any]:
        """The JSON of the answer. Raises RoundhouseApiError, also where it is no object."""
        response = await self.send(request, deadline=deadline)
        with understood():
            body = response.json()
            if not isinstance(body, dict):
                raise TypeError(f"a {type(body).__name__} in place of an object")
        return body

    async def bear(self, error: RoundhouseApiError, trouble: Trouble, deadline: float | None, at: int) -> None:
        """Returns when it is to be tried again, and raises ``error`` where it is not. ``at``: the gateway's number."""
        if not passes(error):
            raise error
        if at == self._at and elsewhere(error):
            self._at = (self._at + 1) % len(self._urls)
        pause = trouble.pause(error, monotonic())
        if pause is None:
            raise error
        if deadline is not None and monotonic() + pause >= deadline:
            raise too_late() from error
        log.info("%s; trying again in %.1f s", error, pause)
        if self._on_trouble is not None:
            self._on_trouble(error, pause)
        if pause:
            await self.wire.sleep(pause)

    async def _once(self, request: Request, token: str, deadline: float | None, *, stream: bool) -> httpx.Response:
        try:
            response = await self.wire.send(request, self.url, token, deadline)
            if not (stream and response.is_success):
                await self.wire.read(response)
            if response.is_success:
                return response
        except httpx.RequestError as error:
            if deadline is not None and monotonic() >= deadline:
                raise too_late() from error
            raise self.unreachable(str(error) or type(error).__name__) from error
        raise refusal(response)

    def unreachable(self, why: str) -> Unreachable:
        return Unreachable(f"No gateway answers at {self.url} ({why}); is `roundhouse up` running?")

    async def log_in(self, username: str, password: str) -> None:
        """Raises RoundhouseApiError ``invalid_credentials``."""
        async with self.wire.alone(None):
            self._login = (username, password)
            await self._grant(None, grant_type="password", username=username, password=password)

    async def _token(self, deadline: float | None) -> str:
        if self._access_token is None:
            await self._renew("", deadline)
        return self._access_token or ""

    async def _grant(self, deadline: float | None, **form: str) -> None:
        tokens = await self.json(Request("POST", "/auth/token", form=form, public=True), deadline=deadline)
        with understood():
            self._access_token, self._refresh_token = str(tokens["access_token"]), tokens.get("refresh_token")

    async def _renew(self, refused: str, deadline: float | None) -> bool:
        """Whether there is another token than the one that was refused, "" if there was none.

        One call at a time asks for it. What comes of that, the others have who waited for it, good or bad.
        """
        failed_before = self._sign_in_failed
        async with self.wire.alone(deadline):
            if (self._access_token or "") != refused:
                return True
            if self._sign_in_failed is not None and self._sign_in_failed is not failed_before:
                raise copy(self._sign_in_failed)
            try:
                return await self._sign_in(deadline)
            except DeadlinePassed:
                raise  # the others may have more time
            except RoundhouseApiError as error:
                self._sign_in_failed = copy(error)
                raise

    async def _sign_in(self, deadline: float | None) -> bool:
        """Whether there was anything to do it by."""
        username, password = self._login
        if self._refresh_token is not None:
            token, self._refresh_token = self._refresh_token, None
            try:
                await self._grant(deadline, grant_type="refresh_token", refresh_token=token)
                return True
            except RoundhouseApiError as error:
                if error.status != 400:
                    raise
        if username is None:
            return False
        await self._grant(deadline, grant_type="password", username=username, password=password or "")
        return True


def _takes_long(error: RoundhouseApiError, seconds: float) -> bool:
    """Whether there was nothing but silence, by the clock here or, after as many ``seconds``, by that of a proxy.

    A job that ran out of time has the same status as the proxy; its answer is not to be asked for again.
    """
    given_up = error.status == 504 and error.may_repeat and seconds > AT_ONCE
    return given_up or isinstance(error.__cause__, httpx.ReadTimeout)


def _undone(error: RoundhouseApiError) -> bool:
    """Whether it is certain that the request has done nothing."""
    return error.status == 429 or error.code == "queue_full" or isinstance(error.__cause__, _UNSENT)
