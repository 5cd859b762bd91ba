"""Every route of the gateway."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute

from gateway import events, inference, jobs, model_list, submit
from gateway.admin import cache as admin_cache
from gateway.admin import history as admin
from gateway.admin import models as admin_models
from gateway.admin import switch as admin_switch
from gateway.auth import grant_token
from gateway.context import context
from gateway.docs import DOCS_ROUTES
from gateway.documents import results
from gateway.health import health
from gateway.model_names import MODEL
from gateway.v1.routes import V1_ROUTES
from gateway.webhooks import routes as webhooks
from gateway.websocket.jobs import ws_jobs


async def token(request: Request) -> Response:
    gateway = context(request)
    return await grant_token(request, gateway.users, gateway.tokens, gateway.logins)


ROUTES: list[BaseRoute] = [
    Route("/health", health, methods=["GET"]),
    Route("/auth/token", token, methods=["POST"]),
    Route("/api/ocr", submit.submit_ocr, methods=["POST"]),
    Route("/api/chat", submit.submit_chat, methods=["POST"]),
    Route("/api/chat/stream", inference.stream_chat, methods=["POST"]),
    Route("/api/embeddings", submit.submit_embeddings, methods=["POST"]),
    Route("/api/models", model_list.list_models, methods=["GET"]),
    Route("/api/jobs", jobs.list_jobs, methods=["GET"]),
    Route("/api/jobs/{id}", jobs.get_job, methods=["GET"]),
    Route("/api/jobs/{id}", jobs.cancel_job, methods=["DELETE"]),
    Route("/api/jobs/{id}/result", results.get_result, methods=["GET"]),
    Route("/api/jobs/{id}/pages/{number}", results.get_page, methods=["GET"]),
    Route("/api/jobs/{id}/files/{name}", results.get_file, methods=["GET"]),
    Route("/api/jobs/{id}/events", events.get_events, methods=["GET"]),
    Route("/api/jobs/{id}/deliveries", webhooks.get_deliveries, methods=["GET"]),
    Route("/api/webhook-secret", webhooks.get_secret, methods=["GET"]),
    Route("/api/webhook-secret/rotate", webhooks.rotate_secret, methods=["POST"]),
    *V1_ROUTES,
    Route("/v1/inference/complete", inference.complete, methods=["POST"]),
    Route("/v1/inference/stream", inference.stream, methods=["POST"]),
    WebSocketRoute("/ws/jobs", ws_jobs),
    Route("/admin/models", admin_models.models, methods=["GET"]),
    *(
        Route(f"/admin/models/{MODEL}/{action}", endpoint, methods=["POST"], name=f"{action}_model")
        for action, endpoint in admin_models.ACTIONS.items()
    ),
    Route(f"/admin/models/{MODEL}", admin_models.model, methods=["GET"]),
    Route(f"/admin/models/{MODEL}", admin_models.change_parameters, methods=["PATCH"]),
    Route("/admin/workers", admin_models.workers, methods=["GET"]),
    Route("/admin/auto-switch", admin_switch.auto_switch, methods=["GET"]),
    Route("/admin/ocr/resolution", admin_models.ocr_resolution, methods=["POST"]),
    Route(f"/admin/queue/{MODEL}", admin.queue, methods=["GET"]),
    Route("/admin/crashes", admin.crashes, methods=["GET"]),
    Route("/admin/missing-models", admin.missing_models, methods=["GET"]),
    Route("/admin/scheduler", admin.scheduler, methods=["GET"]),
    Route("/admin/cache", admin_cache.cache, methods=["GET"]),
    Route("/admin/cache", admin_cache.clear_cache, methods=["DELETE"]),
    *DOCS_ROUTES,
]
