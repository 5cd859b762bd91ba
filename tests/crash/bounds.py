"""After a crash run, the bounds are whole: all slots can be held at once, all places taken, and not one more."""

from collections.abc import Mapping
from typing import Any

import httpx

from broker.broker import Broker
from tests.conditions import eventually
from tests.crash.fleet import Fleet
from tests.crash.history import Breach
from tests.crash.plan import document
from tests.deployments import PASSWORD
from tests.documents import scan_text

_TEXT = "This only fills a place"


class Filler:
    """Fills what is free, and empties it again."""

    def __init__(self, http: httpx.AsyncClient, broker: Broker) -> None:
        self._http = http
        self._jobs = broker.database.jobs

    async def sign_in(self) -> None:
        """As soon as the gateway, which may have been struck last of all, is there again."""
        await eventually(self._healthy, within=60.0)
        form = {"grant_type": "password", "username": "admin", "password": PASSWORD}
        token = (await self._http.post("/auth/token", data=form)).json()["access_token"]
        self._http.headers["Authorization"] = f"Bearer {token}"

    async def _healthy(self) -> bool:
        try:
            return (await self._http.get("/health")).status_code == 200
        except httpx.TransportError:
            return False

    async def fill(self, task: str, places: int, **fault: Any) -> tuple[list[str], httpx.Response]:
        """Submits until refused, ``places`` + 1 times at most; the accepted ids, and the last answer."""
        ids: list[str] = []
        while True:
            response = await self._submit(task, fault)
            if response.status_code != 202 or len(ids) == places:
                return ids, response
            ids.append(response.json()["request_id"])

    async def _submit(self, task: str, fault: Mapping[str, Any]) -> httpx.Response:
        if task == "ocr":
            return await self._http.post("/api/ocr", files={"file": ("filler.png", document(scan_text(1)))})
        return await self._http.post("/api/chat", json={"message": _TEXT, "simulate": fault or None})

    async def empty(self, ids: list[str]) -> None:
        for job_id in ids:
            (await self._http.delete(f"/api/jobs/{job_id}")).raise_for_status()

        async def nothing_is_held() -> bool:
            held = [{"place": {"$exists": True}}, {"slot": {"$exists": True}}]
            return await self._jobs.count_documents({"$or": held}) == 0

        await eventually(nothing_is_held)

    async def all_run(self, model: str, slots: int) -> None:
        async def all_slots_are_held() -> bool:
            return await self._jobs.count_documents({"model": model, "status": "processing"}) == slots

        await eventually(all_slots_are_held)


async def bound_breaches(fleet: Fleet, broker: Broker, models: Mapping[str, Mapping[str, Any]]) -> list[Breach]:
    """Dismisses the workers in between, as they would empty what is being filled."""
    breaches: list[Breach] = []
    async with httpx.AsyncClient(base_url=fleet.urls[0], timeout=60.0) as http:
        filler = Filler(http, broker)
        await filler.sign_in()
        try:
            breaches += await _slots(filler, models["simulator"])
            breaches += await dismissed(fleet, "worker")
            for model, entry in models.items():
                breaches += await _places(filler, model, entry)
        except (AssertionError, httpx.HTTPError) as error:
            breaches.append(Breach("The bounds are whole again", None, f"{type(error).__name__}: {error}"))
    return breaches


async def dismissed(fleet: Fleet, role: str) -> list[Breach]:
    return [Breach("SIGTERM ends a process in good order", None, complaint) for complaint in await fleet.dismiss(role)]


async def _slots(filler: Filler, entry: Mapping[str, Any]) -> list[Breach]:
    ids, last = await filler.fill("chat", entry["max_concurrent"], fault="hang")
    await filler.all_run("simulator", entry["max_concurrent"])
    await filler.empty([*ids, *([last.json()["request_id"]] if last.status_code == 202 else [])])
    return []


async def _places(filler: Filler, model: str, entry: Mapping[str, Any]) -> list[Breach]:
    places = entry["max_concurrent"] + entry["max_waiting"]
    ids, last = await filler.fill(entry["task"], places)
    await filler.empty([*ids, *([last.json()["request_id"]] if last.status_code == 202 else [])])
    if len(ids) == places and last.status_code == 503 and last.json()["code"] == "queue_full":
        return []
    detail = f"{model} took {len(ids)} of {places}, then answered {last.status_code} {last.text[:200]}"
    return [Breach("The bounds are whole again", None, detail)]
