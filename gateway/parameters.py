"""Parameters that several operations of ``/openapi.json`` have."""

from collections.abc import Mapping
from typing import Any, get_args

from gateway.openapi import Parameter
from gateway.payloads import WebhookEvent

TEXT: Mapping[str, Any] = {"type": "string"}
_WHOLE_SECONDS: Mapping[str, Any] = {"type": "integer", "minimum": 0}
JOB_ID = Parameter("id", "path", "The job's `request_id`.", TEXT)
WAIT = Parameter("wait", "query", "Seconds to wait for the result, up to `server.max_wait`.", _WHOLE_SECONDS)
PREFER = Parameter("Prefer", "header", "`wait=N` (RFC 7240): as the query parameter, which goes before it.", TEXT)
HOW_TO_RUN = (
    Parameter(
        "X-Client-ID",
        "header",
        "A label of your own, kept with the job; jobs can be listed by it.",
        {"type": "string", "minLength": 1, "maxLength": 128},
    ),
    Parameter(
        "X-Priority",
        "header",
        "How soon; the role caps it. Without it: normal.",
        {"type": "string", "enum": ["high", "normal", "low"]},
    ),
    Parameter(
        "X-Timeout",
        "header",
        "Seconds that an attempt may take, up to the model's own limit, which it is without this.",
        {"type": "number", "minimum": 1},
    ),
    Parameter(
        "Idempotency-Key",
        "header",
        "The same key and content again, as long as the job is kept, is the same job.",
        {"type": "string", "minLength": 1, "maxLength": 255},
    ),
    Parameter(
        "X-Cache",
        "header",
        "`on`: the answer of an earlier request of yours will do that asked the same, and so will this one's later; "
        "`off`: neither. Without it: as the model is set up. `Cache-Control: no-cache` asks anew. Documents have no "
        "use for it.",
        {"type": "string", "enum": ["on", "off"]},
    ),
    Parameter(
        "X-Webhook-URL",
        "header",
        "An address that is told of the job's end, if `outbound.webhooks` is on.",
        {"type": "string", "maxLength": 2048},
    ),
    Parameter(
        "X-Webhook-Events",
        "header",
        f"Of which ends it is told, joined by commas: {', '.join(get_args(WebhookEvent))}. Without it: of any.",
        TEXT,
    ),
)
"""Of every request that makes a job."""
HOW_TO_RUN_PROBLEMS = (
    "idempotency_conflict",
    "invalid_cache",
    "invalid_client_id",
    "invalid_idempotency_key",
    "invalid_priority",
    "invalid_timeout",
    "invalid_wait",
    "invalid_webhook",
    "model_ambiguous",
    "model_not_allowed",
    "model_not_found",
    "payload_too_large",
    "priority_not_allowed",
    "queue_full",
    "rate_limited",
    "unknown_backend",
    "url_refused",
    "webhooks_disabled",
    "wrong_task",
)
