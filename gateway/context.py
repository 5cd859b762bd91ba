"""What the routes of one gateway process share."""

from dataclasses import dataclass
from typing import cast

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from broker.broker import Broker
from broker.page_feed import PageFeed
from config import Settings
from gateway.rate_limit import RateLimiter
from gateway.tokens import Tokens
from gateway.users import Users


@dataclass(frozen=True, slots=True)
class Context:
    settings: Settings
    broker: Broker
    page_feed: PageFeed
    tokens: Tokens
    users: Users
    limiter: RateLimiter
    logins: RateLimiter


def context(request: Request) -> Context:
    return cast(Context, request.app.state.context)


def json_body(body: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(body.model_dump_json(), status, headers, "application/json")
