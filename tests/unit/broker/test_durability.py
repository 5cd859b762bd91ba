"""What is promised is written with majority and journal, and what is shown is read with majority: as it was sent."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import pytest
from bson import ObjectId
from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.monitoring import CommandFailedEvent, CommandListener, CommandStartedEvent, CommandSucceededEvent

from broker.database import Database
from broker.files import FileStore
from broker.job import Failure, Job, NewJob
from broker.queue import JobQueue
from broker.reader import JobReader
from tests.unit.broker.conftest import MODELS, SETTINGS

Make = Callable[..., NewJob]
DURABLE = {"w": "majority", "j": True}
OOPS = Failure("oops", "it broke")
FATAL = Failure("bad_input", "it can never work", permanent=True)


class Heard(CommandListener):
    """The commands that a client has sent."""

    def __init__(self) -> None:
        self.commands: list[Mapping[str, Any]] = []

    def started(self, event: CommandStartedEvent) -> None:
        self.commands.append(event.command)

    def succeeded(self, event: CommandSucceededEvent) -> None:
        """Only what was sent matters."""

    def failed(self, event: CommandFailedEvent) -> None:
        """Only what was sent matters."""

    def of(self, name: str, kind: str) -> list[Any]:
        return [command.get(kind) for command in self.commands if name in command]


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
async def overheard(
    mongod_uri: str, store: Database, database: AsyncDatabase[dict[str, Any]], heard: Heard
) -> AsyncIterator[Database]:
    async with AsyncMongoClient[dict[str, Any]](mongod_uri, event_listeners=[heard], tz_aware=True) as client:
        yield Database(client, client[database.name])


async def cancelled(queue: JobQueue, job: Job) -> None:
    await queue.cancel(job.id, "ann")


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda queue, job: queue.complete(job, {"result": {}}), id="completed"),
        pytest.param(lambda queue, job: queue.fail(job, FATAL), id="failed"),
        pytest.param(lambda queue, job: queue.fail(job, OOPS), id="retried"),
        pytest.param(cancelled, id="cancelled"),
    ],
)
async def test_an_end_that_was_acknowledged_is_with_a_majority_and_in_its_journal(
    overheard: Database, heard: Heard, new_job: Make, write: Callable[[JobQueue, Job], Awaitable[object]]
) -> None:
    queue = JobQueue(overheard, MODELS, SETTINGS)
    await queue.submit(new_job())
    (job,) = (await queue.claim("alpha", "worker")).jobs
    heard.commands.clear()
    await write(queue, job)
    assert heard.of("update", "writeConcern") == [DURABLE]


async def test_a_job_that_was_accepted_is_with_a_majority_and_in_its_journal(
    overheard: Database, heard: Heard, new_job: Make
) -> None:
    await JobQueue(overheard, MODELS, SETTINGS).submit(new_job())
    assert heard.of("insert", "writeConcern") == [DURABLE]


async def test_a_document_that_was_accepted_is_with_a_majority_and_in_its_journal(
    overheard: Database, heard: Heard
) -> None:
    await FileStore(overheard).put(ObjectId(), b"document", "application/pdf")
    assert heard.of("insert", "writeConcern") == [DURABLE, DURABLE], "its chunk and its name"


async def test_what_a_client_is_shown_is_with_a_majority(overheard: Database, heard: Heard, new_job: Make) -> None:
    job = await JobQueue(overheard, MODELS, SETTINGS).submit(new_job())
    reader = JobReader(overheard)
    await reader.get(str(job.id), "ann")  # its first read waits for what the primary knows, see broker.barrier
    heard.commands.clear()
    await reader.get(str(job.id), "ann")
    await reader.newest("ann")
    assert heard.of("find", "readConcern") == [{"level": "majority"}] * 2
