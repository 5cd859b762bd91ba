"""Which model a job is with, and by which way it came there."""

from broker.job import Job


def route_headers(job: Job) -> dict[str, str]:
    """The model that does the job and, where others stood in, ``first -> second -> …`` up to it."""
    headers = {"X-Roundhouse-Model": job.model}
    if job.hops:
        headers["X-Roundhouse-Fallback"] = " -> ".join([*(str(hop["model"]) for hop in job.hops), job.model])
    return headers
