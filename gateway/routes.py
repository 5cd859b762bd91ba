"""Every route of the gateway."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gateway import admin, admin_models, admin_switch, events, jobs, results, submit
from gateway.auth import grant_token
from gateway.context import context
from gateway.docs import DOCS_ROUTES
from gateway.health import health


async def token(request: Request) -> Response:
    gateway = context(request)
    return await grant_token(request, gateway.users, gateway.tokens, gateway.logins)


ROUTES: list[BaseRoute] = [
    Route("/health", health, methods=["GET"]),
    Route("/auth/token", token, methods=["POST"]),
    Route("/api/ocr", submit.submit_ocr, methods=["POST"]),
    Route("/api/chat", submit.submit_chat, methods=["POST"]),
    Route("/api/jobs", jobs.list_jobs, methods=["GET"]),
    Route("/api/jobs/{id}", jobs.get_job, methods=["GET"]),
    Route("/api/jobs/{id}", jobs.cancel_job, methods=["DELETE"]),
    Route("/api/jobs/{id}/result", results.get_result, methods=["GET"]),
    Route("/api/jobs/{id}/pages/{number}", results.get_page, methods=["GET"]),
    Route("/api/jobs/{id}/files/{name}", results.get_file, methods=["GET"]),
    Route("/api/jobs/{id}/events", events.get_events, methods=["GET"]),
    Route("/admin/models", admin_models.models, methods=["GET"]),
    *(
        Route(f"/admin/models/{{model:path}}/{action}", endpoint, methods=["POST"], name=f"{action}_model")
        for action, endpoint in admin_models.ACTIONS.items()
    ),
    Route("/admin/models/{model:path}", admin_models.model, methods=["GET"]),
    Route("/admin/models/{model:path}", admin_models.change_parameters, methods=["PATCH"]),
    Route("/admin/workers", admin_models.workers, methods=["GET"]),
    Route("/admin/auto-switch", admin_switch.auto_switch, methods=["GET"]),
    Route("/admin/ocr/resolution", admin_models.ocr_resolution, methods=["POST"]),
    Route("/admin/queue/{model:path}", admin.queue, methods=["GET"]),
    Route("/admin/crashes", admin.crashes, methods=["GET"]),
    Route("/admin/missing-models", admin.missing_models, methods=["GET"]),
    Route("/admin/scheduler", admin.scheduler, methods=["GET"]),
    *DOCS_ROUTES,
]
