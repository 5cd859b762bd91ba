"""The routes on webhooks: what became of telling, and the secret by which a receiver knows that it is us."""

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from broker.deliveries import Deliveries, Delivery
from gateway.auth import principal_of
from gateway.context import context, json_body
from gateway.jobs import asked_job
from gateway.webhooks.schemas import AttemptBody, DeliveryBody, DeliveryList, WebhookSecret

_NO_STORE = {"Cache-Control": "no-store"}


async def get_deliveries(request: Request) -> Response:
    """``GET /api/jobs/{id}/deliveries``."""
    job = await asked_job(request)
    found = await Deliveries(context(request).broker.database).of_job(job.id)
    return json_body(DeliveryList(deliveries=[_body(delivery) for delivery in found]), headers=_NO_STORE)


def _body(delivery: Delivery) -> DeliveryBody:
    return DeliveryBody(
        id=delivery.id,
        event=delivery.event,
        url=delivery.url,
        status=delivery.state.value,
        created_at=delivery.created_at,
        next_attempt_at=delivery.next_at,
        attempts=[_attempt(attempt) for attempt in delivery.attempts],
    )


def _attempt(attempt: Mapping[str, Any]) -> AttemptBody:
    return AttemptBody.model_validate({**attempt, "seconds": round(attempt["seconds"], 3)})


async def get_secret(request: Request) -> Response:
    """``GET /api/webhook-secret``."""
    return await _secret(request, rotate=False)


async def rotate_secret(request: Request) -> Response:
    """``POST /api/webhook-secret/rotate``."""
    return await _secret(request, rotate=True)


async def _secret(request: Request, *, rotate: bool) -> Response:
    secrets, subject = context(request).webhook_secrets, principal_of(request).subject
    found = await (secrets.rotate(subject) if rotate else secrets.of(subject))
    return json_body(WebhookSecret(secret=found.current, previous_until=found.previous_until), headers=_NO_STORE)
