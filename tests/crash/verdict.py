"""The promises, held against what a crash run has left behind."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta

from bson import ObjectId

from broker.broker import Broker
from broker.database import Database
from broker.files import FileStore
from broker.job import Document, Job, Status
from broker.results import unpack
from gateway.views import for_client
from tests.crash.clients import Ledger, Promise
from tests.crash.history import Breach
from tests.crash.plan import Conduct, Errand

# What only an open job has, and what only a job that a worker holds has.
_OF_OPEN = ("place", "slot", "lease_expires_at", "lane", "not_before")


class Evidence:
    """The jobs as they stand after the run, each with the errand it came from and its result."""

    def __init__(self, ledger: Ledger, errands: Sequence[Errand]) -> None:
        self.ledger = ledger
        self.documents: dict[str, Document] = {}
        self.jobs: dict[str, Job] = {}
        self.results: dict[str, Mapping[str, object] | None] = {}
        self.errands: dict[str, Errand] = {}
        self._by_text = {errand.text: errand for errand in errands if errand.task == "chat"}
        self._by_file = {f"{errand.key}.png": errand for errand in errands if errand.task == "ocr"}

    async def collect(self, database: Database, files: FileStore) -> None:
        async for document in database.jobs.find():
            job = Job.from_document(document)
            job_id = str(job.id)
            self.documents[job_id], self.jobs[job_id] = document, job
            result = await unpack(files, job)
            self.results[job_id] = None if result is None else for_client(job, result)
            self.errands[job_id] = self._errand(job)

    def _errand(self, job: Job) -> Errand:
        if job.file is not None:
            return self._by_file[str(job.file.name)]
        return self._by_text[job.payload["messages"][-1]["content"]]

    def breaches(self) -> Iterator[Breach]:
        for promise in self.ledger.promises.values():
            yield from self._of_promise(promise)
        for job_id, job in self.jobs.items():
            yield from self._of_job(job_id, job)
        yield from self._of_keys()
        for answer in self.ledger.odd:
            yield Breach("No client gets an answer that it cannot use", None, answer)

    def _of_promise(self, promise: Promise) -> Iterator[Breach]:
        job = self.jobs.get(promise.job_id)
        if job is None:
            yield Breach("No accepted job is lost", promise.job_id, f"errand {promise.errand.number}")
            return
        if self.errands[promise.job_id] != promise.errand:
            yield Breach("A client is told of its own job", promise.job_id, f"not of errand {promise.errand.number}")
        if promise.cancelled and job.status is not Status.CANCELLED:
            yield Breach("A cancel that was acknowledged holds", promise.job_id, job.status)
        seen = promise.seen
        if seen is not None and (seen["status"], seen["result"]) != (job.status, self.results[promise.job_id]):
            yield Breach("What a client saw once stays", promise.job_id, f"{seen['status']}, now {job.status}")

    def _of_job(self, job_id: str, job: Job) -> Iterator[Breach]:
        errand, result = self.errands[job_id], self.results[job_id]
        if not job.status.terminal:
            yield Breach("Every job ends", job_id, f"it is {job.status}")
        if held := [name for name in _OF_OPEN if name in self.documents[job_id]]:
            yield Breach("No place, slot or lease leaks", job_id, f"{job.status} with {', '.join(held)}")
        if job.attempts > 1 + job.max_retries:
            yield Breach("No job has more than 1 + max_retries attempts", job_id, str(job.attempts))
        if (job.status is Status.COMPLETED) != (result is not None):
            yield Breach("A job has a result if it has completed", job_id, job.status)
        if result is not None and not errand.answered_by(result):
            yield Breach("Each result is the right one", job_id, f"{result}")
        if job.status is Status.CANCELLED and errand.conduct is not Conduct.CANCEL:
            yield Breach("Nothing is cancelled that nobody cancelled", job_id, errand.conduct)
        if job.status in (Status.FAILED, Status.TIMEOUT) and not _deserved(job, errand):
            yield Breach("A job fails for good reason", job_id, f"{job.attempts} attempts, {list(job.errors)}")

    def _of_keys(self) -> Iterator[Breach]:
        jobs: defaultdict[str, list[str]] = defaultdict(list)
        for job_id, errand in self.errands.items():
            if errand.keyed:
                jobs[errand.key].append(job_id)
        for key, ids in jobs.items():
            if len(ids) > 1:
                yield Breach("One Idempotency-Key makes one job", ids[0], f"{key} made {ids}")

    def unacknowledged(self) -> list[str]:
        """Jobs that were made by a POST whose answer never arrived, and of which no later answer told either."""
        acknowledged = {promise.job_id for promise in self.ledger.promises.values()}
        return [job_id for job_id in self.jobs if job_id not in acknowledged]

    def failed_attempts(self) -> Counter[str]:
        return Counter(error["code"] for job in self.jobs.values() for error in job.errors)

    def burnt(self, untouched: Mapping[str, float]) -> list[str]:
        """Jobs of which an attempt was taken as lost from a worker that nobody had touched until then."""
        return [
            job_id
            for job_id, job in self.jobs.items()
            for error in job.errors
            if error["code"] == "lease_expired" and error["at"].timestamp() < untouched[error["worker"]]
        ]

    def seconds(self) -> list[float]:
        """From accept to end, of each job that was accepted and has ended; sorted."""
        ended = (self.jobs[promise.job_id] for promise in self.ledger.promises.values() if promise.job_id in self.jobs)
        return sorted((job.finished_at - job.created_at).total_seconds() for job in ended if job.finished_at)


def _deserved(job: Job, errand: Errand) -> bool:
    """Whether all attempts are used up, each with its error, or the input was refused for good."""
    if job.errors and job.errors[-1]["code"] == "engine_rejected_input":
        return errand.rejected
    return len(job.errors) == job.attempts == 1 + job.max_retries


async def file_breaches(broker: Broker) -> list[Breach]:
    """After a sweep without grace, there is a file for each reference and a reference for each file."""
    await broker.files.sweep(timedelta(0))
    handle, jobs = broker.database.handle, broker.database.jobs
    files = set(await handle["files.files"].distinct("_id"))
    chunks = set(await handle["files.chunks"].distinct("files_id"))
    named = set(await jobs.distinct("file.id")) | set(await jobs.distinct("result_file"))
    async for page in broker.database.pages.find({}, {"files": 1}):
        named.update(page.get("files", {}).values())
    return [
        *_each("No file is left that no job refers to", files - named),
        *_each("No part of a file is left without the file", chunks - files),
        *_each("No job's file is lost", (named - files) | (named - chunks)),
    ]


def _each(promise: str, ids: set[ObjectId]) -> list[Breach]:
    return [Breach(promise, None, f"file {file_id}") for file_id in sorted(ids)]
