"""What the client can ask of the gateway. Both clients are this, over wires of their own."""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from time import monotonic
from typing import Any, Unpack

import httpx

from roundhouse import requests
from roundhouse.errors import JobFailed, RoundhouseApiError, about, too_late, understood
from roundhouse.following import AsyncStream, job_events
from roundhouse.models import Answer, Job, JobEvent, JobPage, Model
from roundhouse.requests import ChatOptions, Handling, Messages, OcrOptions, Sampling, Source
from roundhouse.session import Session
from roundhouse.wire import Request

# Seconds that one long-poll asks for at most.
POLL = 20
# Seconds for the answer to a long-poll to come, beyond what was asked for.
SLACK = 30.0
# Seconds that a single look at a job may take, where a wait is given no time.
LOOK = 5.0


def deadline_of(timeout: float | None) -> float | None:
    return None if timeout is None else monotonic() + timeout


def id_of(job: Job | str) -> str:
    return job if isinstance(job, str) else job.id


class Calls:
    """Each raises RoundhouseApiError, see ``roundhouse.errors``. A job is given as such or by its id.

    ``timeout``: seconds for the whole of a call; then it raises DeadlinePassed. None: as long as it takes. What fails
    in passing is tried again for as long as the client has patience: a submit bears a key by which it is known again.
    """

    def __init__(self, session: Session) -> None:
        self.session = session

    @property
    def patience(self) -> float:
        """Seconds for which trouble is borne that may pass: no connection, 429, 502, 503, 504."""
        return self.session.patience

    @patience.setter
    def patience(self, seconds: float) -> None:
        self.session.patience = seconds

    @property
    def url(self) -> str:
        """The gateway that is asked now."""
        return self.session.url

    async def login(self, username: str, password: str) -> None:
        """Signs in now rather than with the first call. Raises RoundhouseApiError ``invalid_credentials``."""
        await self.session.log_in(username, password)

    async def submit_chat(
        self, model: str | None, messages: Messages, timeout: float | None = None, **options: Unpack[Sampling]
    ) -> Job:
        """``model``: None for the gateway's default."""
        return await self._submit(requests.chat_submit(model, messages, options), timeout)

    async def submit_ocr(self, document: Source, timeout: float | None = None, **options: Unpack[OcrOptions]) -> Job:
        # There may be a file to read.
        request = await self.session.wire.aside(lambda: requests.ocr_submit(document, options))
        return await self._submit(request, timeout)

    async def submit_embeddings(
        self, model: str, texts: str | Sequence[str], timeout: float | None = None, **options: Unpack[Handling]
    ) -> Job:
        return await self._submit(requests.embeddings_submit(model, texts, options), timeout)

    async def _submit(self, request: Request, timeout: float | None) -> Job:
        return await self._job(request, deadline_of(timeout))

    async def _job(self, request: Request, deadline: float | None = None) -> Job:
        body = await self.session.json(request, deadline=deadline)
        with understood():
            return Job.of(body)

    async def job(self, job: Job | str) -> Job:
        return await self._job(Request("GET", f"/api/jobs/{id_of(job)}"))

    async def wait(
        self,
        job: Job | str,
        timeout: float | None = None,
        *,
        on_change: Callable[[Job], None] | None = None,
        every: int = POLL,
    ) -> Job:
        """The job once it has ended. ``on_change`` sees it after each long-poll, of ``every`` seconds at most.

        With a ``timeout`` of 0 it is looked at once.
        """
        once = timeout is not None and timeout <= 0
        every, deadline = max(every, 1), deadline_of(LOOK if once else timeout)
        with about(id_of(job)):
            while True:
                left = every if deadline is None else min(every, int(deadline - monotonic()) + 1)
                wait = 0 if once else max(left, 0)
                poll = Request("GET", f"/api/jobs/{id_of(job)}", params={"wait": wait}, read=every + SLACK)
                try:
                    found = await self._job(poll, deadline)
                except RoundhouseApiError as error:
                    if error.code != "invalid_wait" or every == 1:
                        raise
                    every //= 2  # the gateway's server.max_wait is shorter
                    continue
                if on_change is not None:
                    on_change(found)
                if found.ended:
                    return found
                if once or (deadline is not None and monotonic() >= deadline):
                    raise too_late()

    async def cancel(self, job: Job | str) -> Job:
        """The job, cancelled. Raises RoundhouseApiError ``job_finished`` where it had ended otherwise before."""
        try:
            return await self._job(Request("DELETE", f"/api/jobs/{id_of(job)}"))
        except RoundhouseApiError as error:
            if error.code != "job_finished" or (found := await self.job(job)).status != "cancelled":
                raise
            return found

    async def jobs(
        self,
        *,
        status: str | None = None,
        model: str | None = None,
        client: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> JobPage:
        query = {"status": status, "model": model, "client": client, "limit": limit, "cursor": cursor}
        params = {name: value for name, value in query.items() if value is not None}
        body = await self.session.json(Request("GET", "/api/jobs", params=params))
        with understood():
            return JobPage([Job.of(job) for job in body["jobs"]], body["next_cursor"], body)

    async def result(self, job: Job | str, format: str | None = None) -> bytes:
        """The result as bytes, ``format`` being one that the job's task has; None: the result's JSON."""
        return (await self.session.send(_result(job, format))).content

    async def result_chunks(self, job: Job | str, format: str | None = None) -> AsyncGenerator[bytes, None]:
        """The same in pieces, for what is not to be in memory as a whole. Raises Unreachable where it breaks off."""
        response = await self.session.send(_result(job, format), stream=True)
        try:
            async with aclosing(self.session.wire.chunks(response)) as chunks:
                async for chunk in chunks:
                    yield chunk
        except httpx.RequestError as error:
            raise self.session.unreachable(str(error) or type(error).__name__) from error
        finally:
            await self.session.wire.close(response)

    def events(self, job: Job | str, timeout: float | None = None) -> AsyncGenerator[JobEvent, None]:
        """What happens to the job, as it happens, up to its end; over as many connections as it takes."""
        return job_events(self.session, id_of(job), deadline_of(timeout))

    def stream(
        self,
        model: str,
        messages: Messages,
        timeout: float | None = None,
        *,
        restarts: bool = False,
        **options: Unpack[ChatOptions],
    ) -> AsyncStream:
        """The answer in pieces, see AsyncStream."""
        request = requests.chat_answer(model, messages, options, stream=True)
        return AsyncStream(self.session, request, deadline_of(timeout), restarts=restarts)

    async def chat(
        self, model: str, messages: Messages, timeout: float | None = None, **options: Unpack[ChatOptions]
    ) -> Answer:
        """The answer to ``messages``. Raises JobFailed. The job goes on where the time is over."""
        request = requests.chat_answer(model, messages, options, stream=False)
        response = await self.session.send(request, deadline=deadline_of(timeout))
        with understood():
            return Answer.of(response.headers["x-request-id"], response.json())

    async def ocr(
        self,
        document: Source,
        timeout: float | None = None,
        *,
        on_event: Callable[[JobEvent], None] | None = None,
        **options: Unpack[OcrOptions],
    ) -> Job:
        """The job, with the document read. ``on_event`` is told of its pages. Raises JobFailed."""
        deadline = deadline_of(timeout)
        job = await self.submit_ocr(document, timeout, **options)
        if on_event is not None:
            async with aclosing(job_events(self.session, job.id, deadline)) as events:
                async for event in events:
                    on_event(event)
        return completed(await self.wait(job, None if deadline is None else deadline - monotonic()))

    async def embed(
        self, model: str, texts: str | Sequence[str], timeout: float | None = None, **options: Unpack[Handling]
    ) -> list[list[float]]:
        """A vector for each of the texts."""
        request = requests.embeddings_answer(model, texts, options)
        body = await self.session.json(request, deadline=deadline_of(timeout))
        with understood():
            return [entry["embedding"] for entry in body["data"]]

    async def models(self) -> list[Model]:
        """All names that requests may use."""
        body = await self.session.json(Request("GET", "/v1/models"))
        with understood():
            return [
                Model(entry["id"], entry["root"], entry["task"], entry["state"], entry.get("description") or "")
                for entry in body["data"]
            ]

    async def call(
        self, method: str, path: str, params: Mapping[str, Any] | None = None, json: object = None
    ) -> dict[str, Any]:
        """The JSON of any other route."""
        repeatable = method in ("GET", "HEAD", "PUT", "DELETE")
        request = Request(method, path, params=params, json=json, repeatable=repeatable)
        return await self.session.json(request)

    async def healthy(self) -> bool:
        """Whether a gateway answers and accepts jobs, at a single look at each until one does."""
        try:
            await self.session.send(Request("GET", "/health", public=True, read=5.0), trouble=self.session.trouble(0.0))
        except RoundhouseApiError:
            return False
        return True


def _result(job: Job | str, wanted: str | None) -> Request:
    return Request("GET", f"/api/jobs/{id_of(job)}/result", params=None if wanted is None else {"format": wanted})


def completed(job: Job) -> Job:
    """The job, if it has a result. Raises JobFailed."""
    if job.status == "completed":
        return job
    code, message = (job.error.code, job.error.message) if job.error else (job.status, "no reason was given")
    raise JobFailed(f"{job.id} {job.status}: {message}", code=code, job_id=job.id)
