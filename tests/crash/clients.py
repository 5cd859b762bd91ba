"""The clients of a crash run. They believe nothing but a 2xx; a broken connection and a 503 mean «try again»."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.crash.plan import Blow, Conduct, Errand, document
from tests.deployments import PASSWORD

ENDED = ("completed", "failed", "timeout", "cancelled")
# Seconds: a long-poll, and what a gateway that hangs has beyond it.
_WAIT = 10
_PATIENCE = 20.0
_PAUSE = 0.1
# For one errand, from its first request to its end: nothing here takes anywhere near as long.
_STUCK = 300.0


@dataclass(slots=True)
class Promise:
    """What the service has acknowledged about one errand. ``seen``: the job as a client saw it after its end."""

    errand: Errand
    job_id: str
    cancelled: bool = False
    cancel_asked: bool = False
    seen: dict[str, Any] | None = None


@dataclass(slots=True)
class Ledger:
    """``asked``: errands of which a POST was sent at all. ``odd``: answers that no client should ever get."""

    promises: dict[int, Promise] = field(default_factory=dict)
    asked: set[int] = field(default_factory=set)
    odd: list[str] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)


class Pace:
    """Ties the blows to the number of accepted jobs: none falls early, and no client runs far ahead of one due."""

    def __init__(self, blows: Sequence[Blow], lead: int) -> None:
        self._blows = blows
        self._lead = lead
        self._changed = asyncio.Condition()
        self._over = False
        self.accepted = 0
        self.struck = 0

    async def count(self) -> None:
        async with self._changed:
            self.accepted += 1
            self._changed.notify_all()

    async def due(self) -> Blow | None:
        """The next blow, once it is due; None when there is no more."""
        async with self._changed:
            await self._changed.wait_for(self._decided)
            return None if self._over or self.struck == len(self._blows) else self._blows[self.struck]

    def _decided(self) -> bool:
        return self._over or self.struck == len(self._blows) or self.accepted >= self._blows[self.struck].at

    async def fell(self) -> None:
        async with self._changed:
            self.struck += 1
            self._changed.notify_all()

    async def may_submit(self) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: not self._lags())

    def _lags(self) -> bool:
        waiting = not self._over and self.struck < len(self._blows)
        return waiting and self.accepted >= self._blows[self.struck].at + self._lead

    async def finish(self) -> None:
        """No more jobs will come, so no more blows will."""
        async with self._changed:
            self._over = True
            self._changed.notify_all()


class Clients:
    """``until``: the monotonic time after which nothing new is submitted."""

    def __init__(self, urls: Sequence[str], http: httpx.AsyncClient, ledger: Ledger, pace: Pace, until: float) -> None:
        self._urls = urls
        self._http = http
        self._ledger = ledger
        self._pace = pace
        self._until = until

    async def sign_in(self) -> None:
        await self._ask("GET", "/health")
        form = {"grant_type": "password", "username": "admin", "password": PASSWORD}
        token = (await self._ask("POST", "/auth/token", data=form)).json()["access_token"]
        self._http.headers["Authorization"] = f"Bearer {token}"

    async def run(self, errands: Sequence[Errand], clients: int) -> None:
        """All errands, by so many clients at once."""
        todo = iter(errands)
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(self._client(todo))

    async def _client(self, todo: Iterator[Errand]) -> None:
        for errand in todo:
            await self._pace.may_submit()
            if time.monotonic() > self._until:
                return
            try:
                async with asyncio.timeout(_STUCK):
                    await self._do(errand)
            except TimeoutError:
                self._ledger.odd.append(f"errand {errand.number}: no end within {_STUCK:.0f} s")
                self._until = 0.0

    async def _do(self, errand: Errand) -> None:
        promise = await self._submit(errand)
        if promise is None:
            return
        match errand.conduct:
            case Conduct.CANCEL:
                await asyncio.sleep(errand.pause)
                await self._cancel(promise)
            case Conduct.AWAIT | Conduct.SUBMIT_AND_AWAIT:
                await self._await(promise)

    async def _submit(self, errand: Errand) -> Promise | None:
        self._ledger.asked.add(errand.number)
        headers = {"X-Client-ID": errand.client, "X-Priority": errand.priority.value}
        if errand.keyed:
            headers["Idempotency-Key"] = errand.key
        waits = {"wait": _WAIT} if errand.conduct is Conduct.SUBMIT_AND_AWAIT else {}
        response = await self._ask("POST", f"/api/{errand.task}", headers=headers, params=waits, **_body(errand))
        if response.status_code not in (200, 202):
            self._odd(f"POST of errand {errand.number}", response)
            return None
        body = response.json()
        promise = self._ledger.promises[errand.number] = Promise(errand, body["request_id"])
        if response.status_code == 200:
            promise.seen = body
        await self._pace.count()
        return promise

    async def _await(self, promise: Promise) -> None:
        while promise.seen is None:
            response = await self._ask("GET", f"/api/jobs/{promise.job_id}", params={"wait": _WAIT})
            if response.status_code != 200:
                self._odd(f"GET of job {promise.job_id}", response)
                return
            if response.json()["status"] in ENDED:
                promise.seen = response.json()

    async def _cancel(self, promise: Promise) -> None:
        promise.cancel_asked = True
        response = await self._ask("DELETE", f"/api/jobs/{promise.job_id}")
        if response.status_code == 200:
            promise.cancelled = True
        elif response.status_code != 409:
            self._odd(f"DELETE of job {promise.job_id}", response)

    async def _ask(self, method: str, path: str, **request: Any) -> httpx.Response:
        """Asks one gateway after the other, until one gives an answer that is not «try again»."""
        url = random.choice(self._urls)
        while True:
            try:
                response = await self._http.request(method, url + path, timeout=_WAIT + _PATIENCE, **request)
            except httpx.TransportError as error:
                self._ledger.answers[type(error).__name__] += 1
            else:
                if response.status_code != 503:
                    return response
                self._ledger.answers[f"503 {response.json().get('code', path)}"] += 1
                if "retry-after" not in response.headers:
                    self._ledger.odd.append(f"{method} {path}: a 503 without Retry-After")
            await asyncio.sleep(_PAUSE)
            url = random.choice(self._urls)

    def _odd(self, what: str, response: httpx.Response) -> None:
        self._ledger.odd.append(f"{what}: {response.status_code} {response.text[:300]}")


def _body(errand: Errand) -> dict[str, Any]:
    """The request's content. The text, or the file's name, tells later which errand a job was."""
    if errand.task == "ocr":
        return {"files": {"file": (f"{errand.key}.png", document(errand.text))}}
    return {"json": {"message": errand.text, "max_tokens": errand.tokens, "simulate": errand.fault}}
