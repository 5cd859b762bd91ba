"""The ``roundhouse`` command."""

import asyncio
import os
import sys
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, get_args

import click
from pymongo.errors import PyMongoError

from broker import logs
from broker.broker import database_uri
from broker.database import connect
from config import Settings, load_settings
from config.errors import RoundhouseError
from config.models import Resolution
from gateway import supervisor
from gateway.commands import chat as chat_command
from gateway.commands import doctor as health_check
from gateway.commands import progress, terminal
from gateway.commands import submit as submit_command
from gateway.commands.connection import PATIENCE, base_url, client, sendable
from gateway.commands.finding import Service
from gateway.commands.weights import pull_weights
from gateway.documents.result_formats import MEDIA_TYPES
from gateway.payloads import Instruction, TextChoice
from gateway.secrets import generate_password
from gateway.users import Users
from roundhouse import Client, RoundhouseApiError

P = ParamSpec("P")
# Seconds that a detached start may take before it is given up; a first start creates the database.
START_PATIENCE = 120.0
# Seconds between two looks at a model that is about to change.
LOOK = 0.5


def reports_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Ends in one sentence and exit status 1 rather than in a traceback."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        _check_encoding(click.get_current_context())
        try:
            command(*args, **kwargs)
        except (RoundhouseError, RoundhouseApiError) as error:
            _fail(f"{error.message} ({error.code})")
        except PyMongoError as error:
            _fail(f"The database does not answer: {logs.in_short(error)}")
        except BrokenPipeError:
            # Who does not read on wants nothing told; click ends quietly.
            raise
        except OSError as error:
            _fail(_told_by(error))

    return run


def _check_encoding(context: click.Context) -> None:
    """Raises BadParameter for what is not in UTF-8, which no request could carry."""
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        if isinstance(value, str) and not sendable(value):
            raise click.BadParameter("It is not in UTF-8; use a terminal whose encoding is UTF-8.", context, parameter)


def _told_by(error: OSError) -> str:
    why = error.strerror or str(error) or type(error).__name__
    # The second of a renaming is the one that was asked for.
    name = error.filename2 or error.filename
    return f"{name}: {why}" if name else why


def _fail(message: str) -> NoReturn:
    click.echo(f"roundhouse: {terminal.plain(message)}", err=True)
    sys.exit(1)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="roundhouse")
def main() -> None:
    """Roundhouse: a queue-backed job broker with a pool of workers.

    Commands that ask a gateway use the one of this machine, or ROUNDHOUSE_URL with ROUNDHOUSE_TOKEN, or
    ROUNDHOUSE_USER and ROUNDHOUSE_PASSWORD.
    """


@main.command()
@click.option("--detach", "-d", is_flag=True, help="Return when the system is up; it goes on in the background.")
@reports_errors
def up(detach: bool) -> None:
    """Start mongod (where no MONGODB_URI is set), the gateways and a worker."""
    settings = load_settings()
    if detach:
        _up_detached(settings)
        return
    logs.configure()
    click.echo(f"Roundhouse starts on {base_url(settings)}; stop it by Ctrl-C (twice to hurry).", err=True)
    asyncio.run(supervisor.up(settings))


def _up_detached(settings: Settings) -> None:
    with Client(base_url(settings)) as probe:
        if supervisor.running(settings) is not None and probe.healthy():
            click.echo(f"Roundhouse is running already on {base_url(settings)}.", err=True)
            return
        process, log = supervisor.start_detached(settings)
        deadline = time.monotonic() + START_PATIENCE
        with progress.spinner("starting mongod, the gateway and a worker"):
            while not (supervisor.running(settings) and probe.healthy()):
                if process.poll() is not None:
                    _fail(f"The start failed: {_last_line(log)} (all of it: {log})")
                if time.monotonic() > deadline:
                    _fail(f"It is not up after {START_PATIENCE:.0f} s; see {log}, and `roundhouse down` stops it.")
                time.sleep(0.1)
    click.echo(f"Roundhouse is up on {base_url(settings)}.", err=True)


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("roundhouse: ") if lines else "it said nothing"


@main.command()
@reports_errors
def down() -> None:
    """Stop what `up` started, and nothing else."""
    settings = load_settings()
    timeout = settings.queue.drain_timeout + 2 * supervisor.GRACE
    stopped = asyncio.run(supervisor.down(settings, timeout))
    click.echo("Roundhouse has stopped." if stopped else "Roundhouse is not running.", err=True)


@main.command()
@reports_errors
def gateway() -> None:
    """Run only the gateways, in the foreground."""
    logs.configure()
    settings = load_settings()
    asyncio.run(supervisor.gateways(settings))


@main.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def worker(arguments: tuple[str, ...]) -> None:
    """Run one worker, in the foreground; `roundhouse worker --help` tells its options."""
    os.execv(sys.executable, [sys.executable, "-m", "worker", *arguments])


@main.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--output", "-o", type=click.Path(dir_okay=False, writable=True, path_type=Path), help="Write it there.")
@click.option("--format", "-f", "wanted", type=click.Choice(list(MEDIA_TYPES)), help="Not the text alone, but this.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole job as JSON.")
@click.option("--model", "-m", help="The model; default: the first of defaults.ocr that a worker serves.")
@click.option("--pages", help="The pages to read, e.g. 1-3,7; default: all.")
@click.option("--text", type=click.Choice(get_args(TextChoice)), help="What to do about text that a PDF carries.")
@click.option("--instruction", type=click.Choice(get_args(Instruction)), help="What a vision model makes of a page.")
@click.option("--term", help="What `--instruction locate` is to find.")
@click.option("--searchable-pdf", is_flag=True, help="Make a PDF with the text under the pages, too.")
@click.option("--no-cache", is_flag=True, help="Read it anew, also where the same has been read before.")
@click.option("--priority", "-p", type=click.Choice(["high", "normal", "low"]))
@click.option("--client-id", "client_label", help="A label for the job (X-Client-ID).")
@reports_errors
def submit(
    file: Path,
    output: Path | None,
    wanted: str | None,
    as_json: bool,
    priority: str | None,
    client_label: str | None,
    no_cache: bool,
    searchable_pdf: bool,
    **fields: str | None,
) -> None:
    """Submit a document, wait, and print its text or write its result."""
    submit_command.check(output, wanted, as_json)
    # Who wants to have it wants it made.
    made = searchable_pdf or wanted == "pdf" or None
    with client() as api:
        told = {"priority": priority, "client": client_label, **fields, "searchable_pdf": made}
        job = submit_command.read(api, file, no_cache=no_cache or None, **told)
        submit_command.write(api, job, output, wanted, as_json)
    if job["status"] != "completed":
        sys.exit(1)


@main.command()
@click.argument("model")
@click.option("--system", "-s", help="What to tell the model before the conversation.")
@click.option("--max-tokens", "-n", type=click.IntRange(min=1), help="The longest answer.")
@click.option("--temperature", "-t", type=click.FloatRange(0, 2), help="How freely it chooses its words.")
@click.option("--priority", "-p", type=click.Choice(["high", "normal", "low"]))
@reports_errors
def chat(model: str, **told: Any) -> None:
    """Talk with a model; with a question on standard input, print its answer."""
    sys.exit(chat_command.run(model, {name: value for name, value in told.items() if value is not None}))


@main.command()
@reports_errors
def demo() -> None:
    """Read the sample document and tell what to try next."""
    settings = load_settings()
    sample = Path(__file__).resolve().parent.parent / "samples" / "letter.pdf"
    with client() as api:
        job = submit_command.read(api, sample, priority="high", client="demo")
    submit_command.require_completed(job)
    terminal.show_demo(job, sample, base_url(settings), settings.home / "secrets" / "admin_password")


@main.command()
@click.option("--status", type=click.Choice(["queued", "processing", "completed", "failed", "timeout", "cancelled"]))
@click.option("--model", "-m")
@click.option("--limit", "-n", default=20, show_default=True)
@click.option("--json", "as_json", is_flag=True)
@reports_errors
def jobs(status: str | None, model: str | None, limit: int, as_json: bool) -> None:
    """List jobs, newest first."""
    with client() as api:
        page = api.jobs(status=status, model=model, limit=limit)
    terminal.show(page.body, as_json, terminal.jobs_table)


@main.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True)
@click.pass_context
@reports_errors
def models(ctx: click.Context, as_json: bool) -> None:
    """List the models with their state, or start and stop them."""
    if ctx.invoked_subcommand is None:
        with client() as api:
            listed = api.call("GET", "/admin/models")
        terminal.show(listed, as_json, terminal.models_table)


_wait = click.option("--wait", "-w", is_flag=True, help="Until it is done or has failed; shows how far it is.")


@models.command()
@click.argument("name")
@click.option("--resolution", type=click.Choice(get_args(Resolution)), help="For models that have several.")
@_wait
@reports_errors
def start(name: str, resolution: str | None, wait: bool) -> None:
    """Start a model; also tries again where it had failed."""
    _ask(name, "start", wait, resolution=resolution)


@models.command()
@click.argument("name")
@click.option("--now", is_flag=True, help="Do not let what runs finish; it goes back to the queue.")
@_wait
@reports_errors
def stop(name: str, now: bool, wait: bool) -> None:
    """Stop a model; its jobs wait in the queue."""
    _ask(name, "stop", wait, graceful="false" if now else "true")


def _add_action(action: str, says: str) -> None:
    @models.command(action, help=says)
    @click.argument("name")
    @_wait
    @reports_errors
    def run(name: str, wait: bool) -> None:
        _ask(name, action, wait)


for _action, _says in {
    "sleep": "Take a model out of the GPU's memory, ready to be woken.",
    "wake": "Wake a model, or start it where it does not run.",
    "restart": "Stop a model gracefully and start it again.",
    "auto": "Take back a start, stop or sleep.",
    "pin": "Never take a model out of memory to make room for another.",
    "unpin": "Take back a pin.",
}.items():
    _add_action(_action, _says)


def _ask(name: str, action: str, wait: bool, **query: str | None) -> None:
    with client() as api:
        given = {key: value for key, value in query.items() if value is not None}
        model = api.call("POST", f"/admin/models/{name}/{action}", given)
        # It has been asked for: a gateway that is away now will tell of it later.
        api.patience = PATIENCE
        if wait and not model["settled"]:
            with progress.model_progress(name) as show:
                try:
                    model = _until_settled(api, name, show)
                except KeyboardInterrupt:
                    click.echo(f"roundhouse: {name} goes on without us; `roundhouse models` shows how.", err=True)
                    sys.exit(130)
    if model["settled"] and model["state"] == "failed" and model["desired"]["wanted"] == "running":
        _fail(f"{name} could not be started: {model['reason'] or 'no reason was given'}")
    terminal.print_text(terminal.model_line(model))


def _until_settled(api: Client, name: str, show: progress.Shows) -> dict[str, Any]:
    """The model once the workers have done what was asked for or have failed to, however long that takes."""
    while True:
        model = api.call("GET", f"/admin/models/{name}")
        show(model)
        if model["settled"]:
            return model
        time.sleep(LOOK)


@main.command()
@click.option("--json", "as_json", is_flag=True)
@reports_errors
def ps(as_json: bool) -> None:
    """List the live workers and what they run."""
    with client() as api:
        alive = api.call("GET", "/admin/workers")
    terminal.show(alive, as_json, terminal.workers_table)


@main.command()
@click.argument("model")
@click.option("--json", "as_json", is_flag=True)
@reports_errors
def queue(model: str, as_json: bool) -> None:
    """Show one model's queue."""
    with client() as api:
        state = api.call("GET", f"/admin/queue/{model}")
    terminal.show(state, as_json, terminal.fields_table)


@main.command()
@click.argument("model")
@reports_errors
def pull(model: str) -> None:
    """Download a GPU model's weights into the state directory."""
    click.echo(f"{pull_weights(load_settings(), model)}")


@main.group()
def user() -> None:
    """Manage users."""


@user.command()
@click.argument("name")
@click.option("--role", default="user", show_default=True, help="A role of the configuration.")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input; default: generate one.")
@reports_errors
def add(name: str, role: str, password_stdin: bool) -> None:
    """Add a user; a generated password is printed once."""
    settings = load_settings()
    if role not in settings.auth.roles:
        _fail(f"There is no role {role!r}; the configuration has {', '.join(settings.auth.roles)}.")
    password = sys.stdin.readline().rstrip("\n") if password_stdin else generate_password()
    asyncio.run(_add_user(settings, name, password, role))
    click.echo(f"User {name} ({role}) is added.", err=True)
    if not password_stdin:
        click.echo(password)


async def _add_user(settings: Settings, name: str, password: str, role: str) -> None:
    database = connect(await database_uri(settings), settings.mongodb.database)
    try:
        await Users(database.handle).create(name, password, role)
    finally:
        await database.close()


@main.command()
@click.argument("only", metavar="[gateway|worker]", required=False, type=click.Choice(get_args(Service)))
@click.option("--json", "as_json", is_flag=True)
@reports_errors
def doctor(only: Service | None, as_json: bool) -> None:
    """Check what this machine has, and say what to do about what is missing.

    Where only gateways or only workers are to run, what the others need is not looked at.
    """
    findings = health_check.examine(only)
    terminal.show_findings(findings, as_json)
    if any(finding.level == "error" for finding in findings):
        sys.exit(1)


if __name__ == "__main__":
    main()
