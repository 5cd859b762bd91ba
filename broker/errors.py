"""Every error that Roundhouse raises on purpose, in one tree:

RoundhouseError                  config/errors.py: a stable ``code`` and one sentence
├── ConfigError                  config/errors.py: the configuration cannot be used
├── OcrError …                   ocr/errors.py: a document that cannot be read, a recogniser in trouble
├── Problem                      gateway/problems.py: an answer that only HTTP knows
├── UrlRefused, ExchangeFailed   gateway/outbound/guard.py: an address of a client may not, or cannot, be reached
├── SupervisorError              gateway/supervisor.py: the system cannot be started or stopped
├── PullFailed, NoWeightsNeeded … gateway/commands/weights.py: a model's weights cannot be fetched
├── BrokerError
│   ├── JobNotFound              no such job, or another client's
│   ├── JobFinished              it has ended, so it cannot be cancelled
│   ├── ModelNotFound            neither a model nor an alias has this name
│   ├── QueueFull                no place free; ``retry_after`` in seconds
│   ├── IdempotencyConflict      the same key with another content
│   ├── FileMissing              the job's document is not in the store
│   ├── FileNotFound             no such uploaded file, or another client's
│   ├── FileInUse                a batch reads it, so it cannot be deleted
│   ├── BatchNotFound            no such batch, or another client's
│   ├── BatchFinished            it has ended, so it cannot be cancelled
│   ├── TooManyBatches           so many of one subject have not ended; ``retry_after`` in seconds
│   └── MongodError              the embedded mongod cannot be found, started or reached
└── EngineError                  an attempt failed in its engine
    ├── EngineInputError         the input is at fault: never retried
    ├── EngineUnavailable        the engine cannot be reached: retried
    │   ├── UpstreamUnreachable  no connection to the server, or it broke
    │   ├── UpstreamBusy         it answered 429 or 5xx; ``retry_after`` in seconds, where it said so
    │   ├── BackendsHeldBack     all that could do it have failed of late, and are left alone for a while
    │   ├── EngineNotRunning     it is about to start again: nobody is charged
    │   └── EngineDied           its process died under the job: charged only to a job that ran alone
    │       └── EngineStalled    it hung, and was killed
    └── AttemptTimeout           the attempt ran longer than the model's timeout: retried
        └── UpstreamTimeout      the server was silent for too long, or took longer than the timeout
"""

from typing import Any, ClassVar

from config.errors import RoundhouseError


class BrokerError(RoundhouseError):
    """Base of what the queue and the stores around it raise."""


class JobNotFound(BrokerError):
    code = "job_not_found"

    def __init__(self, job_id: str) -> None:
        super().__init__(f"There is no job {job_id!r}.")


class JobFinished(BrokerError):
    code = "job_finished"

    def __init__(self, job_id: str, status: str) -> None:
        super().__init__(f"Job {job_id} is {status} already and cannot be cancelled.", status=status)


class ModelNotFound(BrokerError):
    code = "model_not_found"

    def __init__(self, name: str) -> None:
        super().__init__(f"There is no model {name!r} in the configuration.", model=name)


class QueueFull(BrokerError):
    """``retry_after``: whole seconds after which a place may be free."""

    code = "queue_full"

    def __init__(self, model: str, limit: int, retry_after: int) -> None:
        super().__init__(f"All {limit} places of {model} are taken; try again in {retry_after} s.", model=model)
        self.retry_after = retry_after


class IdempotencyConflict(BrokerError):
    code = "idempotency_conflict"

    def __init__(self, key: str) -> None:
        super().__init__(f"The Idempotency-Key {key!r} came with another content before; take a new key.")


class FileMissing(BrokerError):
    code = "file_missing"


class FileTooSlow(BrokerError):
    """So little of a file came for so long that it was swept, as what nobody goes on with is."""

    code = "file_too_slow"


class FileNotFound(BrokerError):
    code = "file_not_found"

    def __init__(self, upload_id: str) -> None:
        super().__init__(f"There is no file {upload_id!r}.")


class FileInUse(BrokerError):
    code = "file_in_use"

    def __init__(self, upload_id: str) -> None:
        super().__init__(f"A batch reads {upload_id}; delete it when that has ended, or cancel the batch first.")


class BatchNotFound(BrokerError):
    code = "batch_not_found"

    def __init__(self, batch_id: str) -> None:
        super().__init__(f"There is no batch {batch_id!r}.")


class BatchFinished(BrokerError):
    code = "batch_finished"

    def __init__(self, batch_id: str, status: str) -> None:
        super().__init__(f"{batch_id} is {status} and cannot be cancelled.", status=status)


class TooManyBatches(BrokerError):
    """``retry_after``: whole seconds after which one of them may have ended."""

    code = "too_many_batches"
    retry_after = 60

    def __init__(self, limit: int) -> None:
        super().__init__(f"{limit} of your batches have not ended; make the next one when one of them has.")


class MongodError(BrokerError):
    code = "mongod_unavailable"


class EngineError(RoundhouseError):
    """An attempt failed in its engine. ``permanent`` errors are not retried."""

    code = "engine_error"
    permanent: ClassVar[bool] = False

    def __init__(self, message: str, *, code: str | None = None, **details: Any) -> None:
        super().__init__(message, **details)
        if code is not None:
            self.code = code  # type: ignore[misc]


class EngineInputError(EngineError):
    code = "engine_rejected_input"
    permanent = True


class EngineUnavailable(EngineError):
    code = "engine_unavailable"


class UpstreamUnreachable(EngineUnavailable):
    """``reached``: whether the server may have heard of the request."""

    code = "upstream_unreachable"

    def __init__(self, message: str, *, reached: bool = True) -> None:
        super().__init__(message)
        self.reached = reached


class UpstreamBusy(EngineUnavailable):
    """``retry_after``: seconds after which the upstream wants to be asked again."""

    code = "upstream_error"

    def __init__(self, message: str, *, status: int, retry_after: float | None = None) -> None:
        super().__init__(message, status=status)
        self.retry_after = retry_after


class BackendsHeldBack(EngineUnavailable):
    """``retry_after``: seconds after which one of them may be tried."""

    code = "backends_held_back"

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class EngineNotRunning(EngineUnavailable):
    code = "engine_not_running"


class EngineDied(EngineUnavailable):
    code = "engine_died"


class EngineStalled(EngineDied):
    code = "engine_stalled"


class AttemptTimeout(EngineError):
    code = "attempt_timeout"


class UpstreamTimeout(AttemptTimeout):
    """``reached``: whether the server has been connected to."""

    code = "upstream_timeout"

    def __init__(self, message: str, *, reached: bool = True) -> None:
        super().__init__(message)
        self.reached = reached
