"""``roundhouse doctor``: what this machine has, what it lacks, and what to type about it.

Nothing is changed, and nothing but the database is asked over the network.
"""

import platform
import sys
from collections.abc import Iterator

from config import Settings, load_settings
from config.errors import ConfigError
from gateway.commands.database_check import database
from gateway.commands.finding import Finding, Service
from gateway.commands.home_check import secrets, state_directory
from gateway.commands.machine_check import document_tools, gpus, operating_system, python_version
from gateway.commands.port_check import port


def examine(only: Service | None = None) -> list[Finding]:
    """Everything that is looked at, in a fixed order: for the whole system, or for one service ``only``.

    Faults of the machine are findings and never raised.
    """
    try:
        settings = load_settings()
    except ConfigError as error:
        return [*_config_problems(error), *_machine(None, only)]
    configuration = Finding("ok", "configuration", f"{settings.config_path} has {len(settings.models)} models.")
    return [configuration, *_machine(settings, only), *_installation(settings, only)]


def _config_problems(error: ConfigError) -> Iterator[Finding]:
    problems = error.details.get("problems")
    for problem in problems if isinstance(problems, list) else [error.message]:
        hint = "Mend it; `python -m config check` says whether all is well."
        yield Finding("error", "configuration", str(problem), hint)


def _machine(settings: Settings | None, only: Service | None) -> Iterator[Finding]:
    yield python_version(sys.version_info[:2])
    yield operating_system(platform.system())
    if only != "gateway":
        yield from document_tools(settings)
        yield from gpus(settings)


def _installation(settings: Settings, only: Service | None) -> Iterator[Finding]:
    yield from state_directory(settings, only)
    yield secrets(settings, only)
    yield database(settings)
    if only != "worker":
        yield port(settings)
