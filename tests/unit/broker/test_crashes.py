"""What the crash log keeps, and for whom."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from broker.crashes import STACK_LIMIT, CrashLog, stack_of
from broker.database import Database
from broker.job import Failure, NewJob
from broker.queue import JobQueue
from broker.reader import JobReader
from broker.registry import Worker

Make = Callable[..., NewJob]


def broken(message: str) -> RuntimeError:
    """An error with a cause, as they are caught."""
    try:
        try:
            raise KeyError("pages")
        except KeyError as cause:
            raise RuntimeError(message) from cause
    except RuntimeError as error:
        return error


def test_a_stack_tells_where_it_broke_and_why() -> None:
    stack = stack_of(broken("the engine fell over"))
    assert "in broken\n" in stack
    assert stack.index("KeyError: 'pages'") < stack.index("RuntimeError: the engine fell over")


def test_of_a_long_stack_the_end_is_kept() -> None:
    stack = stack_of(broken(f"{'x' * STACK_LIMIT} the end"))
    assert len(stack) == STACK_LIMIT
    assert stack.endswith("the end\n")


async def test_a_failed_attempt_is_logged_with_all_there_is_to_know_and_the_client_is_not_shown_the_stack(
    store: Database, queue: JobQueue, reader: JobReader, new_job: Make
) -> None:
    await queue.submit(new_job())
    (job,) = (await queue.claim("alpha", "worker-1")).jobs
    failure = Failure("x", "It broke.", permanent=True, details={"details": {"page": 3}}, stack="Traceback: …")
    status = await queue.fail(job, failure)
    assert status is not None
    await CrashLog(store).add(job, failure, status.value)
    (crash,) = await CrashLog(store).newest()
    assert datetime.now(UTC) - crash["at"] < timedelta(minutes=1)
    assert {name: value for name, value in crash.items() if name != "at"} == {
        "job": str(job.id),
        "model": "alpha",
        "attempt": 1,
        "worker": "worker-1",
        "code": "x",
        "message": "It broke.",
        "details": {"details": {"page": 3}},
        "stack": "Traceback: …",
        "outcome": "failed",
    }
    assert "Traceback" not in str(await reader.get(str(job.id), None))


async def test_a_worker_that_died_is_logged_without_a_stack(store: Database) -> None:
    now = datetime.now(UTC)
    await CrashLog(store).add_worker_death(Worker("w", "host", 7, now, now, draining=False, models={}))
    (crash,) = await CrashLog(store).newest()
    assert (crash["code"], crash["worker"], crash["stack"]) == ("worker_died", "w", None)
    assert (crash["job"], crash["model"], crash["attempt"]) == (None, None, None)
