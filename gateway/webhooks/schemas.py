"""What webhooks and the routes on them hold. The message is what a receiver gets."""

from datetime import datetime
from typing import Literal

from gateway.payloads import WebhookEvent
from gateway.schemas import Body, JobError, Links, Status, Task


class EndedJob(Body):
    """The job of which a message tells, as `GET /api/jobs/{id}` has it, without its result."""

    request_id: str
    status: Status
    task: Task
    model: str
    client: str | None
    created_at: datetime
    finished_at: datetime
    attempts: int
    error: JobError | None
    links: Links


class WebhookMessage(Body):
    """The body that a receiver is sent, in the form of Standard Webhooks."""

    type: WebhookEvent
    timestamp: datetime
    """When it happened, however much later the message comes."""
    data: EndedJob


class AttemptBody(Body):
    at: datetime
    status: int | None
    """Of the receiver's answer; null where there was none."""
    error: str | None
    """Why there was none, or why it counts for a failure."""
    seconds: float
    """How long it took."""
    response: str | None
    """The beginning of the answer's body."""


class DeliveryBody(Body):
    id: str
    """The header `webhook-id` of the message, the same in each attempt."""
    event: WebhookEvent
    url: str
    status: Literal["pending", "delivered", "failed"]
    created_at: datetime
    next_attempt_at: datetime | None
    """Null where there will be none."""
    attempts: list[AttemptBody]
    """Oldest first; of very many the last 50."""


class DeliveryList(Body):
    deliveries: list[DeliveryBody]


class WebhookSecret(Body):
    secret: str
    """Signs what you are told, as Standard Webhooks says; libraries for that take it as it is."""
    previous_until: datetime | None
    """Until then the secret before this one signs, too."""
