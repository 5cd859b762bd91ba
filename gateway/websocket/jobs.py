"""``/ws/jobs``: the states, the progress and the answers of many jobs on one connection (RFC 6455).

A client says who it is by the header ``Authorization`` or, as browsers cannot set one, by its first message. Each
subscription is a task of its own; they take turns in sending, and who waits for a slow client holds one message.
"""

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from bson import ObjectId
from starlette.datastructures import Headers
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from broker.cancellation import cancel_all
from broker.errors import JobNotFound
from broker.job import parse_job_id
from gateway.auth import Principal, bearer_token
from gateway.context import Context, context
from gateway.jobs import whose
from gateway.problems import Problem, problem_for, problem_response
from gateway.tokens import LEEWAY, Claims, token_expired, token_missing
from gateway.websocket.messages import Auth, Ping, Subscribe, Unsubscribe, error_message, known_from, read_message
from gateway.websocket.subscription import Subscription

MOST_SUBSCRIPTIONS = 1000
# Bytes of a message from a client.
MAX_MESSAGE = 16 * 1024
# Seconds in which a connection has to say whose it is, and in which a close has to be taken.
AUTH_TIME = 10.0
_PARTING = 5.0

# Of closes (RFC 6455 section 7.4 and its registry; from 4000 on they are an application's own).
RESTARTING = 1012
UNFORESEEN = 1011
UNAUTHENTICATED = 4401


@dataclass(frozen=True, slots=True)
class Closing:
    """How a connection is to be closed."""

    code: int
    reason: str


async def ws_jobs(websocket: WebSocket) -> None:
    gateway = context(websocket)
    try:
        check_origin(websocket.headers, gateway.settings.server.origins)
        given = "authorization" in websocket.headers
        claims = gateway.tokens.verify(bearer_token(websocket.headers)) if given else None
    except Problem as problem:
        await websocket.send_denial_response(problem_response(problem))
        return
    with suppress(WebSocketDisconnect):
        await websocket.accept()
        await Connection(websocket, gateway, claims).run()


def check_origin(headers: Headers, allowed: Sequence[str]) -> None:
    """Raises Problem ``origin_not_allowed`` for a page of another site. What is no browser sends no Origin."""
    origin = headers.get("origin")
    if origin is None or origin in allowed:
        return
    with suppress(ValueError):  # it is no URL
        if urlsplit(origin).netloc.lower() == headers.get("host", "").lower():
            return
    raise Problem("origin_not_allowed", f"Pages of {origin[:200]!r} may not connect; see server.origins.")


class Connection:
    """``claims``: of the token that came with the handshake, if there was one."""

    def __init__(self, websocket: WebSocket, gateway: Context, claims: Claims | None) -> None:
        self._websocket = websocket
        self._gateway = gateway
        self._claims = claims
        self._renewed = asyncio.Event()
        self._turn = asyncio.Lock()
        self._subscriptions: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Until the client goes away, its token expires, or the gateway stops."""
        # No job has this id: all that can be told of it is that nobody is to wait any longer.
        with self._gateway.broker.feed.watch(ObjectId()) as stopping:
            ends = [
                asyncio.create_task(self._read()),
                asyncio.create_task(self._keep_token()),
                asyncio.create_task(_when(stopping.event)),
            ]
            try:
                done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                closing = [self._outcome(task) for task in done].pop()
            finally:
                await cancel_all([*ends, *self._subscriptions.values()])
        if closing is not None and self._stands():
            with suppress(TimeoutError):
                async with asyncio.timeout(_PARTING):
                    await self._websocket.close(closing.code, closing.reason)

    def _outcome(self, task: asyncio.Task[Closing | None]) -> Closing | None:
        """None where the client has gone away."""
        try:
            return task.result()
        except WebSocketDisconnect:
            return None
        except Exception as error:  # noqa: BLE001 - what nobody has foreseen is logged, and the client told so
            return Closing(UNFORESEEN, self._problem(error).code)

    def _problem(self, error: Exception) -> Problem:
        return problem_for(error, {**self._websocket.scope, "method": "WEBSOCKET"})

    async def _keep_token(self) -> Closing:
        while True:
            self._renewed.clear()
            expires_in = None if self._claims is None else self._claims.expires_at + LEEWAY - time.time()
            try:
                async with asyncio.timeout(AUTH_TIME if expires_in is None else max(0.0, expires_in)):
                    await self._renewed.wait()
            except TimeoutError:
                problem = token_missing() if self._claims is None else token_expired()
                return Closing(UNAUTHENTICATED, problem.code)

    async def say(self, message: Callable[[], str]) -> None:
        """Sends what ``message`` makes, when it is its turn. Raises WebSocketDisconnect."""
        async with self._turn:
            # Who had the turn before may have found the client gone. Starlette tells nobody else of that.
            if not self._stands():
                raise WebSocketDisconnect(1006)
            await self._websocket.send_text(message())

    def _stands(self) -> bool:
        return self._websocket.application_state is WebSocketState.CONNECTED

    async def _say(self, message: str) -> None:
        await self.say(lambda: message)

    async def _read(self) -> Closing | None:
        while (received := await self._websocket.receive())["type"] != "websocket.disconnect":
            try:
                await self._answer(received.get("text"))
            except Problem as problem:
                if self._claims is None:
                    return Closing(UNAUTHENTICATED, problem.code)
                await self._say(error_message(problem))
        return None

    async def _answer(self, text: str | None) -> None:
        message = read_message(text)
        if isinstance(message, Auth):
            await self._authenticate(message.token)
            return
        if self._claims is None:
            raise token_missing()
        match message:
            case Ping():
                await self._say('{"type": "pong"}')
            case Subscribe():
                await self._subscribe(message, Principal(self._claims.subject, self._claims.role))
            case Unsubscribe():
                await self._unsubscribe(message.job)

    async def _authenticate(self, token: str) -> None:
        claims, known = self._gateway.tokens.verify(token), self._claims
        if known is not None and (known.subject, known.role) != (claims.subject, claims.role):
            raise Problem("forbidden", "The token is of another user or role; open a connection of its own for it.")
        self._claims = claims
        self._renewed.set()
        await self._say(
            json.dumps({"type": "authenticated", "expires_in": max(0, claims.expires_at - int(time.time()))})
        )

    async def _subscribe(self, message: Subscribe, principal: Principal) -> None:
        # As it is written in what is told, whichever case the client writes it in.
        job_id = message.job.lower()
        problem = self._refusal(job_id)
        if problem is not None:
            await self._say(error_message(problem, message.job))
            return
        subscription = Subscription(self._gateway, self.say, frozenset(message.events), known_from(message.after))
        task = asyncio.create_task(self._run(subscription, job_id, whose(principal)))
        self._subscriptions[job_id] = task
        task.add_done_callback(lambda _: self._forget(job_id, task))

    def _forget(self, job_id: str, task: asyncio.Task[None]) -> None:
        if self._subscriptions.get(job_id) is task:
            del self._subscriptions[job_id]

    def _refusal(self, job_id: str) -> Problem | None:
        if parse_job_id(job_id) is None:
            return self._problem(JobNotFound(job_id))
        if job_id in self._subscriptions:
            return Problem("already_subscribed", f"Job {job_id} is subscribed to; unsubscribe first.")
        if len(self._subscriptions) >= MOST_SUBSCRIPTIONS:
            return Problem(
                "too_many_subscriptions",
                f"A connection may have {MOST_SUBSCRIPTIONS} subscriptions; unsubscribe, or open another one.",
            )
        return None

    async def _run(self, subscription: Subscription, job_id: str, subject: str | None) -> None:
        # What follows a connection's end is of no interest.
        with suppress(WebSocketDisconnect):
            try:
                await subscription.run(job_id, subject)
            except WebSocketDisconnect:
                raise
            except Exception as error:  # noqa: BLE001 - one job's trouble is not to end what is told of others
                await self._say(error_message(self._problem(error), job_id))

    async def _unsubscribe(self, job: str) -> None:
        job_id = job.lower()
        task = self._subscriptions.get(job_id)
        if task is not None:
            await cancel_all([task])
            self._forget(job_id, task)
        await self._say(json.dumps({"type": "unsubscribed", "job": job_id}))


async def _when(stopping: asyncio.Event) -> Closing:
    await stopping.wait()
    return Closing(RESTARTING, "gateway_stopping")
