"""A short run of the crash suite, and proof that its eyes are open: each broken promise is seen where there is one."""

from typing import Any

import pytest
from bson import ObjectId

from tests.crash.__main__ import main
from tests.crash.history import History
from tests.crash.plan import Conduct, Kind, Target, blows, errands

FIRST, SECOND = ObjectId(), ObjectId()


def test_a_system_that_is_struck_six_times_keeps_its_promises(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["--jobs", "60", "--kills", "6", "--seed", "3"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    assert "| jobs accepted (a 2xx was seen) | 60 |" in printed.out
    assert "| verdict | every promise was kept |" in printed.out


def test_the_seed_decides_jobs_and_blows() -> None:
    assert blows(1, 600, 40, 2.0) == blows(1, 600, 40, 2.0) != blows(2, 600, 40, 2.0)
    assert errands(1, 600) == errands(1, 600) != errands(2, 600)


def test_a_long_run_has_blows_of_every_kind_and_all_conducts() -> None:
    struck = {(blow.kind, blow.target) for blow in blows(1, 600, 40, 2.0)}
    assert struck == {(kind, target) for kind in Kind for target in Target} - {(Kind.STOP, Target.SUPERVISOR)}
    moments = [blow.at for blow in blows(1, 600, 40, 2.0)]
    assert moments == sorted(moments)
    assert moments[-1] < 600
    assert {errand.conduct for errand in errands(1, 600)} == set(Conduct)
    assert {errand.task for errand in errands(1, 600)} == {"chat", "ocr"}


def test_another_word_is_not_taken_for_the_right_answer() -> None:
    errand = next(errand for errand in errands(1, 60) if errand.task == "chat")
    right = errand._expected()
    assert errand.answered_by(right)
    wrong = right["message"]["content"].replace(right["message"]["content"].split()[1], "steel", 1)
    assert not errand.answered_by({**right, "message": {"role": "assistant", "content": wrong}})


def _inserted(job_id: ObjectId, place: int) -> dict[str, Any]:
    document = {"model": "sim", "status": "queued", "attempts": 0, "max_retries": 1, "place": place}
    return {"operationType": "insert", "documentKey": {"_id": job_id}, "fullDocument": document}


def _updated(job_id: ObjectId, *removed: str, **fields: Any) -> dict[str, Any]:
    about = {"updatedFields": fields, "removedFields": list(removed)}
    return {"operationType": "update", "documentKey": {"_id": job_id}, "updateDescription": about}


def _claimed(job_id: ObjectId, token: str, attempts: int = 1, slot: int = 0) -> dict[str, Any]:
    return _updated(job_id, "lane", status="processing", token=token, attempts=attempts, slot=slot)


def _completed(job_id: ObjectId) -> dict[str, Any]:
    return _updated(job_id, "place", "slot", "lease_expires_at", status="completed", result={})


def _requeued(job_id: ObjectId) -> dict[str, Any]:
    return _updated(job_id, "slot", "token", "lease_expires_at", status="queued")


def _cancelled(job_id: ObjectId) -> dict[str, Any]:
    return _updated(job_id, "place", "lane", status="cancelled")


def _breaches(*changes: dict[str, Any]) -> set[str]:
    history = History()
    for change in changes:
        history.take(change)
    history.check_bounds({("sim", "place"): 1, ("sim", "slot"): 1})
    return {breach.promise for breach in history.breaches}


def test_a_job_that_is_retried_and_one_that_is_cancelled_under_its_worker_break_nothing() -> None:
    assert not _breaches(
        _inserted(FIRST, 0),
        _claimed(FIRST, "a"),
        _requeued(FIRST),
        _claimed(FIRST, "b", attempts=2),
        _updated(FIRST, lease_expires_at=1),
        _completed(FIRST),
        _inserted(SECOND, 0),
        _claimed(SECOND, "c"),
        _cancelled(SECOND),
        _updated(SECOND, "slot", "lease_expires_at"),
    )


@pytest.mark.parametrize(
    ("changes", "promise"),
    [
        ([_claimed(FIRST, "a"), _completed(FIRST), _completed(FIRST)], "Each job ends once"),
        (
            [_claimed(FIRST, "a"), _completed(FIRST), _updated(FIRST, result={"x": 1})],
            "A job that has ended never changes",
        ),
        ([_claimed(FIRST, "a"), _claimed(FIRST, "b", attempts=2)], "No job has two live leases"),
        ([_claimed(FIRST, "a"), _requeued(FIRST), _claimed(FIRST, "a", 2)], "A token is drawn at each claim"),
        ([_claimed(FIRST, "a", attempts=2)], "A claim counts one attempt"),
        ([_claimed(FIRST, "a", attempts=3)], "No job has more than 1 + max_retries attempts"),
        ([_updated(FIRST, status="processing", token="a", attempts=1)], "Each claim holds a slot"),
        ([_completed(FIRST)], "Every transition is legal"),
        ([_cancelled(FIRST), _requeued(FIRST)], "Every transition is legal"),
        ([_inserted(SECOND, 0)], "No two jobs hold one place"),
        ([_inserted(SECOND, 1)], "The bounds are exact"),
        ([_claimed(FIRST, "a"), _inserted(SECOND, 1), _claimed(SECOND, "b")], "No two jobs hold one slot"),
        ([{"operationType": "delete", "documentKey": {"_id": FIRST}}], "A job is only ever inserted and updated"),
    ],
)
def test_the_audit_sees(changes: list[dict[str, Any]], promise: str) -> None:
    assert promise in _breaches(_inserted(FIRST, 0), *changes)
