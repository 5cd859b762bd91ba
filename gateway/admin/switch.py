"""The operator's view of what has been planned: which models are loaded, and why. Role admin."""

import asyncio

from starlette.requests import Request
from starlette.responses import Response

from gateway.auth import require_role
from gateway.context import context, json_body
from gateway.switch_views import auto_switch_body


async def auto_switch(request: Request) -> Response:
    require_role(request, "admin")
    broker = context(request).broker
    lease, standing, workers, desired = await asyncio.gather(
        broker.leadership.look(), broker.plans.look(), broker.registry.live_workers(), broker.desired.all()
    )
    return json_body(auto_switch_body(broker, lease or {}, standing, workers, desired))
