"""A client of Roundhouse's HTTP API, as the command line uses it."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from config.errors import RoundhouseError

# Seconds that one long-poll asks for; short enough to show progress between two.
POLL = 1
# Seconds between two looks at a model that is about to change.
LOOK = 0.5
_TERMINAL = frozenset({"completed", "failed", "timeout", "cancelled"})

Job = Mapping[str, Any]


class ClientError(RoundhouseError):
    """The gateway refused a request, or could not be reached. ``code`` is the gateway's."""

    code = "gateway_unreachable"

    def __init__(self, message: str, *, code: str | None = None, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        if code is not None:
            self.code = code  # type: ignore[misc]


class Client:
    """``url`` without a path. Signs in with ``token``, or with ``username`` and ``password`` when first needed."""

    def __init__(
        self, url: str, *, token: str | None = None, username: str | None = None, password: str | None = None
    ) -> None:
        self._http = httpx.Client(base_url=url, timeout=httpx.Timeout(60.0, connect=5.0), trust_env=False)
        self._credentials = {"username": username, "password": password}
        self._token = token
        self.url = url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._http.close()

    def submit_document(
        self,
        path: Path,
        *,
        priority: str | None = None,
        client: str | None = None,
        no_cache: bool = False,
        **fields: str | None,
    ) -> Job:
        """Submits a document for OCR; the answer to the submit, with ``request_id``. ``fields``: those of the form."""
        headers = {"X-Priority": priority, "X-Client-ID": client, "Cache-Control": "no-cache" if no_cache else None}
        data = {key: value for key, value in fields.items() if value is not None}
        with path.open("rb") as file:
            return self._call(
                "POST",
                "/api/ocr",
                files={"file": (path.name, file)},
                data=data,
                headers={key: value for key, value in headers.items() if value is not None},
            )

    def wait(self, job_id: str, on_change: Callable[[Job], None] | None = None) -> Job:
        """The job once it has ended, however long that takes. ``on_change`` sees it every POLL seconds or sooner."""
        while True:
            job = self.job(job_id, wait=POLL)
            if on_change is not None:
                on_change(job)
            if job["status"] in _TERMINAL:
                return job

    def job(self, job_id: str, *, wait: int = 0) -> Job:
        return self._call("GET", f"/api/jobs/{job_id}", params={"wait": wait} if wait else None)

    def page(self, job_id: str, number: int) -> Job:
        return self._call("GET", f"/api/jobs/{job_id}/pages/{number}")

    @contextmanager
    def result(self, job_id: str, wanted: str) -> Iterator[Iterator[bytes]]:
        """The result in the format that is ``wanted``, in pieces."""
        bearer = {"Authorization": f"Bearer {self._bearer()}"}
        query = {"format": wanted}
        with (
            self._reached(),
            self._http.stream("GET", f"/api/jobs/{job_id}/result", params=query, headers=bearer) as response,
        ):
            if not response.is_success:
                response.read()
                raise _refusal(response)
            yield response.iter_bytes()

    def jobs(self, **query: str | int | None) -> Job:
        return self._call("GET", "/api/jobs", params={key: value for key, value in query.items() if value is not None})

    def models(self) -> Job:
        return self._call("GET", "/admin/models")

    def model(self, name: str) -> Job:
        return self._call("GET", f"/admin/models/{name}")

    def act(self, name: str, action: str, **query: str | None) -> Job:
        """Asks for ``action`` (start, stop …) of a model; the model, of which it may have yet to come true."""
        given = {key: value for key, value in query.items() if value is not None}
        return self._call("POST", f"/admin/models/{name}/{action}", params=given)

    def until_settled(self, name: str, on_change: Callable[[Job], None]) -> Job:
        """The model once the workers have done what was asked for or have failed to, however long that takes."""
        while True:
            model = self.model(name)
            on_change(model)
            if model["settled"]:
                return model
            time.sleep(LOOK)

    def workers(self) -> Job:
        return self._call("GET", "/admin/workers")

    def queue(self, model: str) -> Job:
        return self._call("GET", f"/admin/queue/{model}")

    def health(self) -> bool:
        """Whether the gateway answers and accepts jobs."""
        try:
            return self._http.get("/health", timeout=5.0).status_code == 200
        except httpx.TransportError:
            return False

    def _call(self, method: str, path: str, headers: Mapping[str, str] | None = None, **arguments: Any) -> Job:
        bearer = {"Authorization": f"Bearer {self._bearer()}"}
        return self._send(method, path, headers=bearer | dict(headers or {}), **arguments)

    def _bearer(self) -> str:
        if self._token is None:
            grant = {"grant_type": "password", **self._credentials}
            self._token = str(self._send("POST", "/auth/token", data=grant)["access_token"])
        return self._token

    def _send(self, method: str, path: str, **arguments: Any) -> Job:
        with self._reached():
            response = self._http.request(method, path, **arguments)
        if response.is_success:
            body: dict[str, Any] = response.json()
            return body
        raise _refusal(response)

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except httpx.TransportError as error:
            told = str(error) or type(error).__name__
            raise ClientError(f"No gateway answers at {self.url} ({told}); is `roundhouse up` running?") from error


def _refusal(response: httpx.Response) -> ClientError:
    try:
        problem = response.json()
    except ValueError:
        problem = {}
    message = problem.get("detail") or problem.get("error_description") or response.reason_phrase
    return ClientError(message, code=problem.get("code"), status=response.status_code)
