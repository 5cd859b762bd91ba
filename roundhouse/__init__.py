"""A client of Roundhouse, sync and async: jobs, answers, and streams that go on where connections break."""

from roundhouse.aio import AsyncClient
from roundhouse.client import Client, Stream
from roundhouse.errors import DeadlinePassed, JobFailed, RoundhouseApiError, StreamRestarted, Unreachable
from roundhouse.following import AsyncStream
from roundhouse.models import (
    Answer,
    End,
    Job,
    JobError,
    JobEvent,
    JobPage,
    Model,
    Piece,
    Progress,
    Reasoning,
    Restart,
    Text,
    ToolCall,
    ToolCallPiece,
    Usage,
)

__all__ = [
    "Answer",
    "AsyncClient",
    "AsyncStream",
    "Client",
    "DeadlinePassed",
    "End",
    "Job",
    "JobError",
    "JobEvent",
    "JobFailed",
    "JobPage",
    "Model",
    "Piece",
    "Progress",
    "Reasoning",
    "Restart",
    "RoundhouseApiError",
    "Stream",
    "StreamRestarted",
    "Text",
    "ToolCall",
    "ToolCallPiece",
    "Unreachable",
    "Usage",
]
