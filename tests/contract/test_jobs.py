import asyncio
import base64
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.users import Users
from tests import documents
from tests.deployments import Gateway
from worker.worker import Worker

SAMPLES = Path(__file__).parents[2] / "samples"
LETTER = SAMPLES / "letter.pdf"


async def submit_chat(gateway: Gateway, message: str = "hello", **body: object) -> httpx.Response:
    return await gateway.http.post("/api/chat", json={"message": message, **body})


async def add_user(gateway: Gateway, name: str, role: str = "user") -> dict[str, str]:
    await Users(gateway.broker.database.handle).create(name, f"{name}-password", role)
    return {"Authorization": f"Bearer {await gateway.token(name, f'{name}-password')}"}


async def test_a_submit_is_answered_202_with_where_to_look(gateway: Gateway) -> None:
    response = await submit_chat(gateway)
    body = response.json()
    assert response.status_code == 202
    assert response.headers["location"] == f"/api/jobs/{body['request_id']}"
    assert (body["status"], body["model"], body["position"], body["workers"]) == ("queued", "simulator", 1, 0)
    assert "No worker serves simulator" in body["message"]
    job = (await gateway.http.get(response.headers["location"])).json()
    assert (job["status"], job["attempts"], job["position"]) == ("queued", 0, 1)


async def test_a_chat_is_answered_within_its_wait(gateway: Gateway, worker: Worker) -> None:
    response = await gateway.http.post("/api/chat", json={"message": "hello"}, headers={"Prefer": "wait=30"})
    body = response.json()
    assert response.status_code == 200
    assert response.headers["preference-applied"] == "wait=30"
    assert body["status"] == "completed"
    assert body["result"]["message"]["content"].startswith("[simulator]")
    assert body["result"]["finish_reason"] == "stop"


async def test_the_same_prompt_gets_the_same_answer_under_an_alias_too(gateway: Gateway, worker: Worker) -> None:
    answers = []
    for model in ("simulator", "sim"):
        response = await gateway.http.post("/api/chat?wait=30", json={"message": "hello", "model": model})
        answers.append(response.json()["result"])
    assert answers[0] == answers[1]


async def test_a_wait_that_ends_before_the_job_is_answered_202_again(gateway: Gateway) -> None:
    response = await gateway.http.post("/api/chat", json={"message": "hello"}, headers={"Prefer": "wait=1"})
    assert response.status_code == 202
    job = await gateway.http.get(response.headers["location"], params={"wait": 0})
    assert (job.status_code, job.json()["status"]) == (200, "queued")


async def test_each_way_of_sending_a_document_returns_the_same_text(gateway: Gateway, worker: Worker) -> None:
    document = LETTER.read_bytes()
    url = f"data:application/pdf;base64,{base64.b64encode(document).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "Read this."}]
    wait = {"Prefer": "wait=60"}
    responses = [
        await gateway.http.post("/api/ocr", headers=wait, json={"messages": [{"role": "user", "content": content}]}),
        await gateway.http.post("/api/ocr", headers=wait, files={"file": ("letter.pdf", document)}),
        await gateway.http.post("/api/ocr", headers=wait | {"Content-Type": "application/pdf"}, content=document),
    ]
    results = [response.json()["result"] for response in responses]
    assert [response.status_code for response in responses] == [200, 200, 200]
    assert len(results[0]["pages"]) == 2
    assert results[0]["text"].split()[:3] == (SAMPLES / "letter.txt").read_text().split()[:3]
    for result in results:
        for page in result["pages"]:
            assert page.pop("duration") > 0
    assert results[0] == results[1] == results[2]


async def test_the_same_document_again_is_answered_at_once_unless_the_client_wants_it_read(
    gateway: Gateway, worker: Worker
) -> None:
    async def sent(**headers: str) -> Any:
        files = {"file": ("letter.pdf", LETTER.read_bytes())}
        data = {"pages": "1"}
        response = await gateway.http.post("/api/ocr?wait=60", files=files, data=data, headers=headers)
        return response.json()

    first = await sent()
    again, anew = await sent(), await sent(**{"Cache-Control": "no-cache"})
    assert again["request_id"] not in (first["request_id"], anew["request_id"])
    assert (again["cached_from"], first["cached_from"], anew["cached_from"]) == (first["request_id"], None, None)
    assert (again["attempts"], again["result"], again["pages"]) == (0, first["result"], first["pages"])
    other = await gateway.http.post("/api/ocr", files={"file": ("page.png", documents.page_png())})
    assert other.status_code == 202, "how long jobs take is told by those that were run alone"
    whole = await gateway.http.get(f"/api/jobs/{again['request_id']}/pages/1")
    assert whole.json()["text"] == first["result"]["pages"][0]["text"]


async def test_progress_is_shown_page_by_page(gateway: Gateway, worker: Worker) -> None:
    response = await gateway.http.post("/api/ocr", files={"file": ("letter.pdf", LETTER.read_bytes())})
    job = await gateway.ended(response.json()["request_id"])
    assert job["progress"] == {"done": 2, "total": 2, "unit": "pages"}


async def test_cancelling_a_queued_job_is_final(gateway: Gateway) -> None:
    where = (await submit_chat(gateway)).headers["location"]
    cancelled = await gateway.http.delete(where)
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    assert (await gateway.http.delete(where)).status_code == 200
    assert (await gateway.http.get(where)).json()["status"] == "cancelled"


async def test_cancelling_a_running_job_stops_it_and_frees_its_slot(gateway: Gateway, worker: Worker) -> None:
    from tests.conditions import eventually

    where = (await submit_chat(gateway, simulate={"fault": "hang"})).headers["location"]

    async def runs() -> bool:
        return bool((await gateway.http.get(where)).json()["status"] == "processing")

    await eventually(runs)
    assert (await gateway.http.delete(where)).json()["status"] == "cancelled"

    async def freed() -> bool:
        return await gateway.broker.database.jobs.count_documents({"slot": {"$gte": 0}}) == 0

    await eventually(freed)


async def test_a_finished_job_cannot_be_cancelled(gateway: Gateway, worker: Worker) -> None:
    response = await gateway.http.post("/api/chat?wait=30", json={"message": "hello"})
    refused = await gateway.http.delete(f"/api/jobs/{response.json()['request_id']}")
    assert (refused.status_code, refused.json()["code"]) == (409, "job_finished")


async def test_another_clients_job_is_not_found(gateway: Gateway) -> None:
    where = (await submit_chat(gateway)).headers["location"]
    bob = await add_user(gateway, "bob")
    for method in ("GET", "DELETE"):
        response = await gateway.http.request(method, where, headers=bob)
        assert (response.status_code, response.json()["code"]) == (404, "job_not_found")


async def test_an_admin_sees_everybodys_jobs_and_others_their_own(gateway: Gateway) -> None:
    bob = await add_user(gateway, "bob")
    await submit_chat(gateway)
    theirs = await gateway.http.post("/api/chat", json={"message": "hi"}, headers=bob | {"X-Client-ID": "desk 4"})
    everybodys = (await gateway.http.get("/api/jobs")).json()["jobs"]
    bobs = (await gateway.http.get("/api/jobs", headers=bob)).json()["jobs"]
    assert len(everybodys) == 2
    assert [(job["request_id"], job["client"]) for job in bobs] == [(theirs.json()["request_id"], "desk 4")]


async def test_a_list_comes_by_pages_and_filters(gateway: Gateway) -> None:
    for _ in range(5):
        await submit_chat(gateway)
    first = (await gateway.http.get("/api/jobs", params={"limit": 3, "model": "sim"})).json()
    rest = (await gateway.http.get("/api/jobs", params={"limit": 3, "cursor": first["next_cursor"]})).json()
    ids = [job["request_id"] for job in first["jobs"] + rest["jobs"]]
    assert len(set(ids)) == 5
    assert ids == sorted(ids, reverse=True)
    assert rest["next_cursor"] is None
    assert (await gateway.http.get("/api/jobs", params={"status": "completed"})).json()["jobs"] == []


async def test_a_transient_fault_is_retried_and_kept_in_the_history(gateway: Gateway, worker: Worker) -> None:
    response = await submit_chat(gateway, simulate={"fault": "error", "after": 3})
    job = await gateway.ended(response.json()["request_id"])
    assert (job["status"], job["attempts"]) == ("completed", 2)
    assert [(error["attempt"], error["code"]) for error in job["errors"]] == [(1, "simulated_error")]
    crashes = (await gateway.http.get("/admin/crashes")).json()["crashes"]
    assert [(crash["job"], crash["code"], crash["outcome"]) for crash in crashes] == [
        (job["request_id"], "simulated_error", "queued")
    ]


@pytest.mark.parametrize(
    ("fault", "code", "attempts"), [("garbage", "answer_cut_off", 4), ("reject", "engine_rejected_input", 1)]
)
async def test_a_fault_that_stays_ends_the_job_with_its_reason(
    gateway: Gateway, worker: Worker, fault: str, code: str, attempts: int
) -> None:
    response = await submit_chat(gateway, simulate={"fault": fault, "attempts": 10})
    job = await gateway.ended(response.json()["request_id"])
    assert (job["status"], job["attempts"], job["error"]["code"]) == ("failed", attempts, code)


async def test_twenty_places_take_twenty_of_fifty_at_once(gateway: Gateway) -> None:
    responses = await asyncio.gather(*(submit_chat(gateway) for _ in range(50)))
    codes = [response.status_code for response in responses]
    assert (codes.count(202), codes.count(503)) == (20, 30)
    refused = next(response for response in responses if response.status_code == 503)
    assert refused.json()["code"] == "queue_full"
    assert int(refused.headers["retry-after"]) > 0
    assert await gateway.broker.database.jobs.count_documents({}) == 20


async def test_a_full_queue_leaves_no_file_behind(gateway: Gateway) -> None:
    document = LETTER.read_bytes()
    responses = await asyncio.gather(
        *(gateway.http.post("/api/ocr", files={"file": ("letter.pdf", document)}) for _ in range(25))
    )
    assert sorted(response.status_code for response in responses) == [202] * 20 + [503] * 5
    assert await gateway.broker.database.handle["files.files"].count_documents({}) == 20


async def test_fourteen_scanned_pages_come_back_in_their_order(gateway: Gateway, worker: Worker) -> None:
    response = await gateway.http.post("/api/ocr?wait=120", content=documents.scanned_pdf(14))
    pages = response.json()["result"]["pages"]
    assert [page["number"] for page in pages] == list(range(1, 15))
    for page in pages:
        assert page["text"].split()[:6] == documents.scan_text(page["number"]).split()[:6]


async def test_a_chat_that_the_release_before_this_one_has_answered_can_be_read(
    gateway: Gateway, worker: Worker
) -> None:
    first = (await gateway.http.post("/api/chat?wait=30", json={"message": "hello"})).json()
    answer = {
        "message": {"role": "assistant", "content": "Good day."},
        "finish_reason": "length",
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
    }
    jobs = gateway.broker.database.jobs
    await jobs.update_one({}, {"$set": {"result": answer}, "$unset": {"asked": "", "chunks": "", "stream": ""}})
    job = await gateway.http.get(first["links"]["self"])
    assert (job.status_code, job.json()["result"]) == (200, answer)
    whole = await gateway.http.get(f"/v1/chat/completions/{first['request_id']}")
    assert whole.status_code == 200, whole.text
    [choice] = whole.json()["choices"]
    assert (choice["index"], choice["message"]["content"], choice["finish_reason"]) == (0, "Good day.", "length")
    assert whole.json()["usage"] == answer["usage"]
