"""What the routes of one gateway process share."""

from dataclasses import dataclass
from typing import cast

from pydantic import BaseModel
from starlette.requests import HTTPConnection
from starlette.responses import Response

from broker.broker import Broker
from broker.chunk_feed import ChunkFeed
from broker.page_feed import PageFeed
from config import Settings
from gateway.outbound.guard import Guard, Outbound
from gateway.rate_limit import RateLimiter
from gateway.tokens import Tokens
from gateway.users import Users
from gateway.webhooks.secrets import WebhookSecrets


@dataclass(frozen=True, slots=True)
class Context:
    settings: Settings
    broker: Broker
    page_feed: PageFeed
    chunk_feed: ChunkFeed
    tokens: Tokens
    users: Users
    limiter: RateLimiter
    logins: RateLimiter
    guard: Guard
    images: Outbound
    webhook_secrets: WebhookSecrets


def context(connection: HTTPConnection) -> Context:
    return cast(Context, connection.app.state.context)


def json_body(body: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(body.model_dump_json(), status, headers, "application/json")
