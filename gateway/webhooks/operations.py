"""What the routes on webhooks do, for ``/openapi.json``."""

from gateway.openapi import Answer, Operation, Operations
from gateway.parameters import JOB_ID
from gateway.webhooks.schemas import DeliveryList, WebhookSecret

WEBHOOK_OPERATIONS: Operations = {
    ("GET", "/api/jobs/{id}/deliveries"): Operation(
        tag="webhooks",
        summary="What became of telling of a job",
        description="Empty until the job has ended, and where nobody asked to be told of such an end.",
        parameters=(JOB_ID,),
        answers=(Answer(200, "Deliveries with their attempts", DeliveryList),),
        problems=("job_not_found",),
    ),
    ("GET", "/api/webhook-secret"): Operation(
        tag="webhooks",
        summary="The secret that signs your webhooks",
        description="Made when it is first asked for or needed, and the same for all your jobs.",
        answers=(Answer(200, "The secret", WebhookSecret),),
    ),
    ("POST", "/api/webhook-secret/rotate"): Operation(
        tag="webhooks",
        summary="Replace the secret that signs your webhooks",
        description="For a day messages are signed with the one before, too, so that no receiver misses any.",
        answers=(Answer(200, "The new secret", WebhookSecret),),
    ),
}
