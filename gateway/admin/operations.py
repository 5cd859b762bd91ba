"""What the operator's routes do, for ``/openapi.json``. All need the role admin."""

from collections.abc import Mapping
from typing import Any, get_args

from broker.parameters import Parameters
from config.models import Resolution
from gateway.admin.switch_schemas import AutoSwitch
from gateway.openapi import Answer, Operation, Operations, Parameter
from gateway.payloads import ResolutionRequest
from gateway.schemas import (
    CrashList,
    MissingModelList,
    ModelBody,
    ModelList,
    QueueBody,
    Scheduler,
    WorkerList,
)

_TEXT: Mapping[str, Any] = {"type": "string"}
_MODEL = Parameter("model", "path", "A model's name or alias; slashes may stay as they are.", _TEXT)
_WAITS = (
    Parameter(
        "wait",
        "query",
        "Seconds to wait until the workers have done it or have failed to, up to `server.max_wait`.",
        {"type": "integer", "minimum": 0},
    ),
    Parameter("Prefer", "header", "`wait=N` (RFC 7240): as the query parameter, which goes before it.", _TEXT),
)
_RESOLUTION = Parameter(
    "resolution",
    "query",
    "For models that read documents in several modes; an engine that runs in another one is started again.",
    {"type": "string", "enum": [*get_args(Resolution)]},
)
_GRACEFUL = Parameter(
    "graceful",
    "query",
    "Whether what runs may finish, within `queue.drain_timeout`; if not, it is handed back to the queue.",
    {"type": "boolean", "default": True},
)


def _action(summary: str, *problems: str, description: str = "", parameters: tuple[Parameter, ...] = ()) -> Operation:
    """What is written down at once and then done by the workers."""
    return Operation(
        tag="admin",
        summary=summary,
        description=description,
        parameters=(_MODEL, *parameters, *_WAITS),
        answers=(
            Answer(200, "The workers have done it, or have failed to: see `state`", ModelBody, ("Preference-Applied",)),
            Answer(202, "It is written down, and the workers will do it", ModelBody, ("Preference-Applied",)),
        ),
        problems=("invalid_wait", "model_not_found", *problems),
        role="admin",
    )


def _mark(summary: str, description: str) -> Operation:
    return Operation(
        tag="admin",
        summary=summary,
        description=description,
        parameters=(_MODEL,),
        answers=(Answer(200, "The model", ModelBody),),
        problems=("model_not_found",),
        role="admin",
    )


_MODEL_OPERATIONS: Operations = {
    ("GET", "/admin/models"): Operation(
        tag="admin",
        summary="The models, and where they run",
        answers=(Answer(200, "All models of the configuration", ModelList),),
        role="admin",
    ),
    ("GET", "/admin/models/{model}"): Operation(
        tag="admin",
        summary="One model, and where it runs",
        parameters=(_MODEL,),
        answers=(Answer(200, "The model", ModelBody),),
        problems=("model_not_found",),
        role="admin",
    ),
    ("PATCH", "/admin/models/{model}"): Operation(
        tag="admin",
        summary="Change a model's parameters while it runs",
        description="Kept across restarts, and seen by all processes within about a second. Null: as configured.",
        parameters=(_MODEL,),
        body={"application/json": Parameters},
        answers=(Answer(200, "The model with what holds now", ModelBody),),
        problems=(
            "empty_body",
            "invalid_json",
            "invalid_request",
            "model_not_found",
            "not_changeable",
            "payload_too_large",
        ),
        role="admin",
    ),
    ("POST", "/admin/models/{model}/start"): _action(
        "Start a model",
        "action_not_supported",
        "cannot_start",
        "invalid_resolution",
        description="Also tries again where it had failed too often.",
        parameters=(_RESOLUTION,),
    ),
    ("POST", "/admin/models/{model}/stop"): _action(
        "Stop a model",
        "invalid_query",
        description="Its jobs stay in the queue until it is started again.",
        parameters=(_GRACEFUL,),
    ),
    ("POST", "/admin/models/{model}/sleep"): _action(
        "Put a model to sleep",
        "action_not_supported",
        "model_not_running",
        description="Out of the GPU's memory, and back much faster than from a start.",
    ),
    ("POST", "/admin/models/{model}/wake"): _action(
        "Wake a model, or start it where it does not run", "action_not_supported", "cannot_start"
    ),
    ("POST", "/admin/models/{model}/restart"): _action("Stop a model gracefully and start it again", "cannot_start"),
    ("POST", "/admin/models/{model}/auto"): _action(
        "Take back a start, stop or sleep", description="Whether the model runs is decided without an operator again."
    ),
    ("POST", "/admin/models/{model}/pin"): _mark(
        "Pin a model", "A pinned model is not taken out of memory to make room for another."
    ),
    ("POST", "/admin/models/{model}/unpin"): _mark("Unpin a model", "It may be taken out of memory again."),
    ("POST", "/admin/ocr/resolution"): Operation(
        tag="admin",
        summary="Choose the mode in which documents are read",
        description="An engine that runs in another one is started again; whether it runs stays as it is.",
        parameters=_WAITS,
        body={"application/json": ResolutionRequest},
        answers=(
            Answer(200, "The workers have done it, or have failed to: see `state`", ModelBody, ("Preference-Applied",)),
            Answer(202, "It is written down, and the workers will do it", ModelBody, ("Preference-Applied",)),
        ),
        problems=(
            "action_not_supported",
            "empty_body",
            "invalid_json",
            "invalid_request",
            "invalid_wait",
            "model_not_found",
            "payload_too_large",
        ),
        role="admin",
    ),
    ("GET", "/admin/auto-switch"): Operation(
        tag="admin",
        summary="Which models are loaded, and why: decisions, what waits, forecast, memory",
        description="Of the models whose engines take memory, as the process that plans has last told.",
        answers=(Answer(200, "The plan", AutoSwitch),),
        role="admin",
    ),
    ("GET", "/admin/workers"): Operation(
        tag="admin",
        summary="The live workers, and what they run",
        answers=(Answer(200, "Workers", WorkerList),),
        role="admin",
    ),
}

ADMIN_OPERATIONS: Operations = {
    **_MODEL_OPERATIONS,
    ("GET", "/admin/queue/{model}"): Operation(
        tag="admin",
        summary="A model's queue",
        parameters=(_MODEL,),
        answers=(Answer(200, "What waits, what runs, and how the others ended", QueueBody),),
        problems=("model_not_found",),
        role="admin",
    ),
    ("GET", "/admin/crashes"): Operation(
        tag="admin",
        summary="Attempts that ended in a crash, newest first",
        parameters=(
            Parameter("since", "query", "Only later ones.", {"type": "string", "format": "date-time"}),
            Parameter("model", "query", "Only those of this model.", _TEXT),
            Parameter("code", "query", "Only those with this code, as `engine_died`.", _TEXT),
            Parameter(
                "limit", "query", "How many.", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}
            ),
        ),
        answers=(Answer(200, "Crashes", CrashList),),
        problems=("invalid_query",),
        role="admin",
    ),
    ("GET", "/admin/missing-models"): Operation(
        tag="admin",
        summary="Names that were asked for and are no model",
        answers=(Answer(200, "Names, how often and by whom", MissingModelList),),
        role="admin",
    ),
    ("GET", "/admin/scheduler"): Operation(
        tag="admin",
        summary="What runs by the clock: last and next run of each task, and how it went",
        answers=(Answer(200, "The clockwork as its leader last told", Scheduler),),
        role="admin",
    ),
}
