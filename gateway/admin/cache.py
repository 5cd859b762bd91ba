"""The operator's routes on answers that are used again. Role admin."""

from dataclasses import asdict

from starlette.requests import Request
from starlette.responses import Response

from broker.naming import named
from gateway.auth import require_role
from gateway.context import context, json_body
from gateway.openapi import Answer, Operation, Operations, Parameter
from gateway.schemas import Body


class CacheOfModel(Body):
    model: str
    entries: int
    bytes: int
    """Of the answers, which are kept with their jobs. An entry itself takes some hundred bytes."""
    hits: int
    """Since the cache was first used, as the other counts."""
    misses: int
    saved_tokens: int
    """Of prompts and answers that no engine had to see again."""


class CacheBody(Body):
    """Answers that are used again, and the sums of what they have saved."""

    entries: int
    max_entries: int
    bytes: int
    hits: int
    misses: int
    saved_tokens: int
    models: list[CacheOfModel]


class CacheCleared(Body):
    deleted: int
    """Entries. Their jobs stay."""


async def cache(request: Request) -> Response:
    require_role(request, "admin")
    gateway = context(request)
    found = [CacheOfModel(**asdict(one)) for one in await gateway.broker.answers.standing()]
    return json_body(
        CacheBody(
            entries=sum(one.entries for one in found),
            max_entries=gateway.settings.cache.max_entries,
            bytes=sum(one.bytes for one in found),
            hits=sum(one.hits for one in found),
            misses=sum(one.misses for one in found),
            saved_tokens=sum(one.saved_tokens for one in found),
            models=found,
        )
    )


async def clear_cache(request: Request) -> Response:
    """Raises ModelNotFound."""
    require_role(request, "admin")
    gateway, asked = context(request), request.query_params.get("model")
    model = None if asked is None else named(gateway.settings, asked)
    return json_body(CacheCleared(deleted=await gateway.broker.answers.clear(model)))


CACHE_OPERATIONS: Operations = {
    ("GET", "/admin/cache"): Operation(
        tag="admin",
        summary="Answers that are used again: how many there are, and what they have saved",
        answers=(Answer(200, "By model, and in all", CacheBody),),
        role="admin",
    ),
    ("DELETE", "/admin/cache"): Operation(
        tag="admin",
        summary="Forget answers, so that none of them is used again",
        parameters=(
            Parameter("model", "query", "Only those of this model, by its name or alias.", {"type": "string"}),
        ),
        answers=(Answer(200, "They are forgotten", CacheCleared),),
        problems=("model_not_found",),
        role="admin",
    ),
}
