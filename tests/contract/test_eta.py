"""Positions and expected times, as a client sees them, against what then happens."""

import asyncio
import time
from pathlib import Path
from statistics import median
from typing import Any

from pymongo.asynchronous.database import AsyncDatabase

from tests.conditions import eventually
from tests.deployments import Gateway, gateway_on, make_settings, patient_config, worker_on

# Long beside what a busy machine adds to each.
SERVICE = 1.0
PLACES = 2
# Of 24 jobs.
ENOUGH = 15


async def test_under_steady_load_the_expected_time_is_right_within_a_quarter(
    tmp_path: Path, mongod_uri: str, database: AsyncDatabase[dict[str, Any]]
) -> None:
    config = patient_config()
    config["models"]["simulator"] |= {"max_concurrent": PLACES, "max_waiting": 50}
    config["models"]["simulator"] |= {"tokens": 20, "tokens_per_second": 20 / SERVICE}
    settings = make_settings(tmp_path, mongod_uri, database.name, config)
    async with gateway_on(settings) as gateway, worker_on(settings, "simulator"):
        await asyncio.gather(*(_run(gateway) for _ in range(4)))  # something to measure the service by
        # Others' load makes this machine's unsteady for a while, so it is measured up to five times.
        for _ in range(5):
            errors = await _errors(gateway)
            if len(errors) >= ENOUGH and median(errors) <= 0.25:
                break
    assert len(errors) >= ENOUGH
    assert median(errors) <= 0.25


async def _errors(gateway: Gateway) -> list[float]:
    """Of the times that jobs were told, in shares of those that they took; of those that waited and were told one."""
    found = await asyncio.gather(*(_expected_and_taken(gateway) for _ in range(24)))
    waited = [(expected, taken) for expected, taken in found if expected is not None and taken > 2 * SERVICE]
    errors = [abs(expected - taken) / taken for expected, taken in waited]
    if errors:
        print(f"ETA error over {len(errors)} jobs: median {median(errors):.3f}, worst {max(errors):.3f}")
    return errors


async def _run(gateway: Gateway) -> None:
    response = await gateway.http.post("/api/chat?wait=30", json={"message": "warm"})
    assert response.json()["status"] == "completed"


async def _expected_and_taken(gateway: Gateway) -> tuple[float | None, float]:
    submitted = await gateway.http.post("/api/chat", json={"message": "hi"})
    job_id, asked = submitted.json()["request_id"], time.monotonic()
    told = (await gateway.http.get(f"/api/jobs/{job_id}")).json()
    await gateway.ended(job_id)
    return told["eta_seconds"] if told["status"] == "queued" else None, time.monotonic() - asked


async def test_positions_are_the_places_in_the_line(gateway: Gateway) -> None:
    ids = []
    for priority in ("low", "normal", "high", "normal"):
        response = await gateway.http.post("/api/chat", json={"message": "hi"}, headers={"X-Priority": priority})
        ids.append(response.json()["request_id"])

    async def positions() -> list[tuple[int, bool]]:
        jobs = [(await gateway.http.get(f"/api/jobs/{job_id}")).json() for job_id in ids]
        return [(job["position"], job["position_exact"]) for job in jobs]

    async def in_order() -> bool:
        return await positions() == [(4, True), (2, True), (1, True), (3, True)]

    await eventually(in_order)
