"""Every route of OpenAI's API."""

from starlette.routing import BaseRoute, Route

from gateway.model_names import MODEL
from gateway.v1 import generation, models
from gateway.v1.batches import files
from gateway.v1.batches import routes as batches
from gateway.v1.responses import routes as responses
from gateway.v1.work import ENDPOINTS

V1_ROUTES: list[BaseRoute] = [
    *(Route(endpoint, generation.submit, methods=["POST"], name=endpoint) for endpoint in ENDPOINTS),
    Route("/v1/chat/completions/{id}", generation.stored_answer, methods=["GET"]),
    Route("/v1/responses", responses.create, methods=["POST"], name="create_response"),
    Route("/v1/responses/{id}", responses.get, methods=["GET"], name="get_response"),
    Route("/v1/responses/{id}", responses.delete, methods=["DELETE"], name="delete_response"),
    Route("/v1/responses/{id}/cancel", responses.cancel, methods=["POST"], name="cancel_response"),
    Route("/v1/responses/{id}/input_items", responses.input_items, methods=["GET"], name="response_input_items"),
    Route("/v1/files", files.create, methods=["POST"], name="create_file"),
    Route("/v1/files", files.listed, methods=["GET"], name="list_files"),
    Route("/v1/files/{id}", files.get, methods=["GET"], name="get_file_object"),
    Route("/v1/files/{id}", files.delete, methods=["DELETE"], name="delete_file"),
    Route("/v1/files/{id}/content", files.content, methods=["GET"], name="get_file_content"),
    Route("/v1/batches", batches.create, methods=["POST"], name="create_batch"),
    Route("/v1/batches", batches.listed, methods=["GET"], name="list_batches"),
    Route("/v1/batches/{id}", batches.get, methods=["GET"], name="get_batch"),
    Route("/v1/batches/{id}/cancel", batches.cancel, methods=["POST"], name="cancel_batch"),
    Route("/v1/models", models.models, methods=["GET"], name="v1_models"),
    Route(f"/v1/models/{MODEL}", models.model, methods=["GET"], name="v1_model"),
]
