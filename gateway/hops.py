"""Which model a job is with, which of its servers has answered, and by which way it came there."""

from broker.job import Job


def route_headers(job: Job) -> dict[str, str]:
    """The model that does the job and, where others stood in, ``first -> second -> …`` up to it; once it is completed,
    the same of the model's servers, where it has several."""
    headers = {"X-Roundhouse-Model": job.model}
    if job.hops:
        headers["X-Roundhouse-Fallback"] = " -> ".join([*(str(hop["model"]) for hop in job.hops), job.model])
    if job.backends:
        headers["X-Roundhouse-Backend"] = " -> ".join(str(backend["name"]) for backend in job.backends)
    return headers
