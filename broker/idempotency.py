"""``Idempotency-Key``: which job a client's key made before."""

from broker.barrier import Barrier
from broker.database import Database
from broker.errors import IdempotencyConflict
from broker.job import Idempotency, Job


class IdempotencyKeys:
    def __init__(self, database: Database) -> None:
        self._jobs = database.jobs
        self._local = database.jobs_local
        self._barrier = Barrier(database)

    async def known(self, subject: str, key: str) -> bool:
        """Whether a job of the subject came with this key. Only a hint, as the submit decides."""
        # Local, because on a new primary a majority read would lag behind.
        return await self._local.find_one({"subject": subject, "idempotency.key": key}, {"_id": 1}) is not None

    async def earlier(self, subject: str, idempotency: Idempotency) -> Job | None:
        """The job that came with this key and content before. Raises IdempotencyConflict."""
        mine = {"subject": subject, "idempotency.key": idempotency.key}
        document = await self._barrier.read(lambda: self._jobs.find_one(mine))
        if document is not None and document["idempotency"]["digest"] != idempotency.digest:
            raise IdempotencyConflict(idempotency.key)
        return None if document is None else Job.from_document(document)
