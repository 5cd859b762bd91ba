"""Webhooks: what a client may ask to be told of a job, and what it is told then.

A message says that a job has ended, and how; it does not hold the result. Whoever is told gets that by the link, with
a token: so a result goes to nobody but those who may read it, a receiver is not sent what it has no use for, and
messages stay as small as Standard Webhooks asks for.
"""

from dataclasses import dataclass
from typing import Any, get_args

import httpx
from starlette.datastructures import Headers

from broker.deliveries import NewDelivery
from broker.job import Job
from gateway.context import Context
from gateway.payloads import WebhookEvent, WebhookFields
from gateway.problems import Problem
from gateway.views import links
from gateway.webhooks.schemas import WebhookMessage

EVENTS: tuple[str, ...] = get_args(WebhookEvent)


@dataclass(frozen=True, slots=True)
class Webhook:
    """Where a client wants to be told, and of which events."""

    url: str
    events: tuple[str, ...] = EVENTS

    def stored(self) -> dict[str, Any]:
        return {"url": self.url, "events": list(self.events)}


def from_headers(headers: Headers) -> Webhook | None:
    """What ``X-Webhook-URL`` and ``X-Webhook-Events`` ask for. Raises Problem ``invalid_webhook``."""
    url, events = headers.get("x-webhook-url"), headers.get("x-webhook-events")
    if url is None:
        if events is not None:
            raise Problem("invalid_webhook", "X-Webhook-Events goes only with X-Webhook-URL.")
        return None
    if events is None:
        return Webhook(url)
    names = tuple(dict.fromkeys(name.strip() for name in events.split(",")))
    for name in names:
        if name not in EVENTS:
            raise Problem("invalid_webhook", f"X-Webhook-Events may name {', '.join(EVENTS)}, not {name!r}.")
    return Webhook(url, names)


def from_fields(fields: WebhookFields) -> Webhook | None:
    """What a body, a form or a query asks for."""
    if fields.webhook_url is None:
        return None
    return Webhook(fields.webhook_url, EVENTS if fields.webhook_events is None else tuple(fields.webhook_events))


async def require_webhook(gateway: Context, webhook: Webhook) -> None:
    """Raises Problem ``webhooks_disabled``, or UrlRefused."""
    if not gateway.settings.outbound.webhooks:
        raise Problem(
            "webhooks_disabled", "Webhooks are off here; an operator can turn them on by outbound.webhooks: true."
        )
    await gateway.guard.admit(webhook.url)


def event_of(job: Job) -> str:
    return f"job.{job.status.value}"


def delivery_of(job: Job) -> NewDelivery | None:
    """What is to be told of a job that has ended; None where its client did not ask for that."""
    event = event_of(job)
    if job.webhook is None or event not in job.webhook["events"]:
        return None
    url = str(job.webhook["url"])
    return NewDelivery(job, event, url, httpx.URL(url).netloc.decode(), message(job))


def message(job: Job) -> str:
    """The body of a message, by which it is always the same job's end that is told."""
    assert job.finished_at is not None  # of a job that has ended
    told = WebhookMessage.model_validate(
        {
            "type": event_of(job),
            "timestamp": job.finished_at,
            "data": {
                "request_id": str(job.id),
                "status": job.status.value,
                "task": job.task,
                "model": job.model,
                "client": job.client,
                "created_at": job.created_at,
                "finished_at": job.finished_at,
                "attempts": job.attempts,
                "error": job.error,
                "links": links(job),
            },
        }
    )
    return told.model_dump_json()
