"""A request that submits work, on its way from HTTP to a job: who sent it, what it may, and which model it means."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from starlette.requests import Request

from broker.job import Idempotency, Job, NewJob
from gateway.answer_cache import cached, may_be_answered
from gateway.auth import Principal, principal_of
from gateway.context import Context, context
from gateway.model_choice import beyond, choose_model, require_backend, require_room
from gateway.outbound.images import require_images
from gateway.payloads import OcrOptions
from gateway.problems import Problem
from gateway.rate_limit import rate_limited
from gateway.submissions import SubmitOptions, submit_options
from gateway.webhooks.messages import Webhook, require_webhook


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request that may submit: who sent it, how it is to be queued, and the headers of its answer."""

    gateway: Context
    principal: Principal
    options: SubmitOptions
    headers: dict[str, str]

    def idempotency(self, model: str | None, payload: Mapping[str, Any], document: bytes = b"") -> Idempotency | None:
        """The client's key with a digest of what it sent, decoded: the same file counts as the same in each form."""
        if self.options.key is None:
            return None
        content = json.dumps([model, payload], sort_keys=True).encode()
        return Idempotency(self.options.key, hashlib.sha256(content + b"\0" + document).hexdigest())

    async def earlier(self, idempotency: Idempotency | None) -> Job | None:
        """The job that the same request has made before. Raises IdempotencyConflict."""
        if idempotency is None:
            return None
        return await self.gateway.broker.queue.keys.earlier(self.principal.subject, idempotency)

    async def model(self, task: str, asked: str | None) -> tuple[str, int]:
        """The model to run it, and how many workers serve that. Raises as ``choose_model``."""
        workers = await self.gateway.broker.registry.known_workers()
        model = await choose_model(self.gateway, task, asked, self.principal, workers)
        return model, sum(worker.serves(model) for worker in workers)

    def payload(self, asked: str | None, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """``given`` with what the name that the client asked for says beyond its model."""
        return {**given, **beyond(self.gateway.settings, asked)}

    async def with_webhook(self, asked: Webhook | None) -> "Arrival":
        """Who the body says is to be told, unless a header has said so. Raises Problem ``webhooks_disabled`` and
        UrlRefused."""
        if asked is None or self.options.webhook is not None:
            return self
        await require_webhook(self.gateway, asked)
        return replace(self, options=replace(self.options, webhook=asked))

    def new_job(
        self,
        task: str,
        model: str,
        payload: Mapping[str, Any],
        idempotency: Idempotency | None,
        *,
        stream: bool = False,
        asked: Mapping[str, Any] | None = None,
    ) -> NewJob:
        """Raises Problem ``invalid_timeout``, ``unknown_backend``, and UrlRefused where an engine would have to fetch
        an image."""
        require_images(payload)
        require_backend(self.gateway.settings.models[model], model, payload)
        webhook = self.options.webhook
        new = NewJob(
            task=task,
            model=model,
            subject=self.principal.subject,
            payload=_with_defaults(self.gateway, task, model, payload),
            client=self.options.client,
            priority=self.options.priority,
            idempotency=idempotency,
            timeout=self._timeout(model),
            stream=stream,
            asked=asked or {},
            webhook=None if webhook is None else webhook.stored(),
        )
        return cached(self.gateway.settings, new, self.options.cache, fresh=self.options.fresh)

    def cancels(self, new: NewJob) -> bool:
        """Whether the job is not to go on when its client goes away. Who gives a key comes back with it."""
        return new.idempotency is None and self.gateway.settings.models[new.model].on_disconnect == "cancel"

    def _timeout(self, model: str) -> float | None:
        asked, most = self.options.timeout, self.gateway.broker.models[model].timeout
        if asked is not None and asked > most:
            raise Problem("invalid_timeout", f"X-Timeout may be {most:g} s at most with {model}, not {asked:g} s.")
        return asked


async def admitted(gateway: Context, principal: Principal) -> dict[str, str]:
    """Counts a request that submits; the headers of its answer. Raises Problem ``rate_limited``."""
    settings = gateway.settings.rate_limit
    if not settings.enabled or principal.role in settings.exempt_roles:
        return {}
    decision = await gateway.limiter.acquire(principal.subject)
    if not decision.allowed:
        raise rate_limited(decision)
    return decision.headers()


async def arrive(request: Request, task: str) -> Arrival:
    """All that needs no body. Raises Problem ``rate_limited`` and those of the headers, QueueFull."""
    gateway, principal = context(request), principal_of(request)
    options = submit_options(request, gateway.settings, principal)
    headers = await admitted(gateway, principal)
    # Not before: to look a name up may take seconds.
    if options.webhook is not None:
        await require_webhook(gateway, options.webhook)
    # What was accepted before needs no room, nor what may have been answered before.
    known = options.key is not None and await gateway.broker.queue.keys.known(principal.subject, options.key)
    if not known and not may_be_answered(gateway.settings, task, options.cache, fresh=options.fresh):
        await require_room(gateway, task, request.query_params.get("model"))
    return Arrival(gateway, principal, options, headers)


def _with_defaults(gateway: Context, task: str, model: str, payload: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the client leaves open is as operators have set it for the model, if they have."""
    sampling = gateway.broker.models.sampling(model)
    match task:
        case "ocr":
            known = {key: value for key, value in sampling.items() if key in OcrOptions.model_fields}
            return {**payload, "options": {**known, **payload["options"]}}
        case "embedding":
            return payload
        case _:
            return {**sampling, **payload}
