"""``roundhouse doctor``: what this machine has, what it lacks, and what to type about it.

Nothing is changed, and nothing but the database is asked over the network.
"""

import errno
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
from pymongo import MongoClient
from pymongo.errors import ConfigurationError, InvalidURI, OperationFailure, PyMongoError, ServerSelectionTimeoutError

from broker.daemons import ProcessRecord
from broker.errors import MongodError
from broker.mongod import EmbeddedMongod
from broker.mongodpath import find_mongod
from config import Settings, TesseractSettings, load_settings
from config.errors import ConfigError
from gateway.supervisor import bound, running

Level = Literal["ok", "warning", "error"]

OLDEST_PYTHON = (3, 11)
OLDEST_MONGODB = 6
FULL = 10**9
NEARLY_FULL = 5 * 10**9
# Seconds.
_DATABASE_PATIENCE = 3.0
_TOOL_PATIENCE = 10.0
_OSD = "osd"
_SET_URI = "export MONGODB_URI='mongodb://USER:PASSWORD@HOST/?replicaSet=NAME'"


@dataclass(frozen=True, slots=True)
class Finding:
    """``message`` is one sentence; ``hint`` says what to type where something is amiss."""

    level: Level
    name: str
    message: str
    hint: str | None = None


def examine() -> list[Finding]:
    """Everything that is looked at, in a fixed order. Faults of the machine are findings and never raised."""
    try:
        settings = load_settings()
    except ConfigError as error:
        return [*_config_problems(error), *_machine(None)]
    configuration = Finding("ok", "configuration", f"{settings.config_path} has {len(settings.models)} models.")
    return [configuration, *_machine(settings), *_installation(settings)]


def _config_problems(error: ConfigError) -> Iterator[Finding]:
    problems = error.details.get("problems")
    for problem in problems if isinstance(problems, list) else [error.message]:
        hint = "Mend it; `python -m config check` says whether all is well."
        yield Finding("error", "configuration", str(problem), hint)


def _installation(settings: Settings) -> list[Finding]:
    return [*state_directory(settings.home), secrets(settings.home), database(settings), port(settings)]


def _machine(settings: Settings | None) -> list[Finding]:
    return [
        python_version(sys.version_info[:2]),
        operating_system(platform.system()),
        *document_tools(settings),
        gpu(),
    ]


# --- the machine


def python_version(version: tuple[int, int]) -> Finding:
    shown, oldest = ".".join(map(str, version)), ".".join(map(str, OLDEST_PYTHON))
    if version < OLDEST_PYTHON:
        hint = f"Install Python {oldest} or newer, delete .venv and run ./quickstart.sh again."
        return Finding("error", "python", f"Python {shown} is too old, {oldest} is needed.", hint)
    return Finding("ok", "python", f"Python {shown}.")


def operating_system(system: str) -> Finding:
    if system != "Linux":
        hint = "Run it on Linux: in a container, a virtual machine, or WSL 2."
        return Finding("error", "platform", f"Roundhouse runs on Linux, and this is {system or 'unknown'}.", hint)
    return Finding("ok", "platform", f"Linux {platform.release()} on {platform.machine()}.")


def document_tools(settings: Settings | None) -> Iterator[Finding]:
    """Tesseract and poppler; errors where a model of the configuration needs them."""
    models = {} if settings is None else settings.models
    readers = {name: entry for name, entry in models.items() if isinstance(entry, TesseractSettings)}
    lacking: Level = "error" if readers or settings is None else "warning"
    languages = {language for entry in readers.values() for language in entry.languages or ()}
    yield _tesseract(languages, lacking)
    yield _poppler(lacking)


def _tesseract(needed: set[str], lacking: Level) -> Finding:
    version, listed = _answer("tesseract", "--version"), _answer("tesseract", "--list-langs")
    if version is None or listed is None:
        return Finding(
            lacking, "tesseract", "Tesseract is not installed.", _install("tesseract-ocr", "tesseract-ocr-osd")
        )
    if listed.returncode:
        reason = _first_line(listed.stderr or listed.stdout)
        return Finding(lacking, "tesseract", f"Tesseract does not work: {reason}.", _install("tesseract-ocr"))
    name = _first_line(version.stdout or version.stderr).capitalize()
    return languages_finding(name, installed_languages(listed.stdout), needed, lacking)


def installed_languages(listing: str) -> list[str]:
    """The names in what ``tesseract --list-langs`` prints: below a heading, one on each line."""
    return [line.strip() for line in listing.splitlines()[1:] if line.strip()]


def languages_finding(tesseract: str, installed: Sequence[str], needed: set[str], lacking: Level) -> Finding:
    reads = [language for language in installed if language not in (_OSD, "equ")]
    missing = sorted(needed - set(installed)) or ([] if reads else ["eng"])
    if missing:
        message = f"{tesseract} lacks the language {', '.join(missing)}."
        return Finding(lacking, "tesseract", message, _install(*map(_package, missing)))
    shown = f"{', '.join(reads[:12])}{' and more' if len(reads) > 12 else ''}"
    if _OSD not in installed:
        message = f"{tesseract} reads {shown}, but cannot detect scripts and turned pages, for osd is missing."
        return Finding("warning", "tesseract", message, _install("tesseract-ocr-osd"))
    return Finding("ok", "tesseract", f"{tesseract} reads {shown}; `tesseract-ocr-LANGUAGE` packages add languages.")


def _package(language: str) -> str:
    """Debian's package with a language; those of whole scripts (script/Latin) are named by no rule."""
    return "tesseract-ocr-all" if "/" in language else f"tesseract-ocr-{language.lower().replace('_', '-')}"


def _poppler(lacking: Level) -> Finding:
    answer = _answer("pdftoppm", "-v")
    if answer is None or shutil.which("pdfinfo") is None:
        return Finding(
            lacking, "poppler", "Poppler, which draws PDF pages, is not installed.", _install("poppler-utils")
        )
    version = re.search(r"version (\S+)", answer.stderr + answer.stdout)
    if version is None:
        reason = _first_line(answer.stderr or answer.stdout)
        return Finding(lacking, "poppler", f"pdftoppm does not work: {reason}.", _install("poppler-utils"))
    return Finding("ok", "poppler", f"Poppler {version[1]} draws PDF pages.")


def gpu() -> Finding:
    answer = _answer("nvidia-smi", "-L")
    return gpu_finding(None if answer is None else (answer.returncode, answer.stdout + answer.stderr))


def gpu_finding(answer: tuple[int, str] | None) -> Finding:
    """``answer``: exit status and output of ``nvidia-smi -L``; None where there is no such program."""
    if answer is None:
        return Finding("ok", "gpu", "There is no NVIDIA GPU, so engines that run on the CPU are used.")
    status, output = answer
    names = re.findall(r"^GPU \d+: (.+?)(?: \(UUID: .*)?$", output, re.MULTILINE)
    if status or not names:
        message = f"nvidia-smi finds no GPU: {_first_line(output)}."
        return Finding("warning", "gpu", message, "Type `nvidia-smi` and mend the driver, often by a reboot.")
    kinds = ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names))
    return Finding("ok", "gpu", f"GPUs: {kinds}.")


def _answer(*command: str) -> subprocess.CompletedProcess[str] | None:
    """What a program says, or None where it is not installed. A program that hangs has failed."""
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TOOL_PATIENCE,
            check=False,
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"no answer within {_TOOL_PATIENCE:.0f} s")
    except OSError as error:
        return subprocess.CompletedProcess(command, 126, "", f"{error}")


def _install(*packages: str) -> str:
    if shutil.which("apt-get") is None:
        return f"Install what Debian calls {' and '.join(packages)} by your system's package manager."
    sudo = "" if os.geteuid() == 0 else "sudo "
    return f"{sudo}apt-get install {' '.join(packages)}"


def _first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0].strip().rstrip(".") if lines else "it says nothing"


# --- the state directory


def state_directory(home: Path) -> Iterator[Finding]:
    """Writable, private, and with room. A directory that is not there yet is judged by the one it will be in."""
    try:
        place = next(path for path in (home, *home.parents) if path.exists())
        with tempfile.TemporaryFile(dir=place):
            free = shutil.disk_usage(place).free
        open_to_others = home.exists() and home.stat().st_mode & 0o077
    except OSError as error:
        message = f"{home} cannot be used: {error.strerror or error}."
        yield Finding("error", "state directory", message, "Set ROUNDHOUSE_HOME to a directory that you may write to.")
        return
    if open_to_others:
        message = f"Other users may look into {home}."
        yield Finding("warning", "state directory", message, f"chmod 700 {shlex.quote(str(home))}")
    elif place == home:
        yield Finding("ok", "state directory", f"{home} can be written to and is private.")
    else:
        yield Finding("ok", "state directory", f"{home} will be created at the first start.")
    yield disk_finding(place, free)


def disk_finding(place: Path, free: int) -> Finding:
    """``free`` in bytes."""
    message = f"{free / 10**9:.1f} GB are free on the disk of {place}."
    if free >= NEARLY_FULL:
        return Finding("ok", "disk", message)
    hint = f"Make room (`du -xh {shlex.quote(str(place))} | sort -h | tail`), or set ROUNDHOUSE_HOME to another disk."
    return Finding("error" if free < FULL else "warning", "disk", message, hint)


def secrets(home: Path) -> Finding:
    """What is kept under ``home`` for its owner alone."""
    try:
        places = [*home.glob("secrets/*"), home / "mongod" / "mongod.json", home / "mongod" / "keyfile"]
        kept = [path for path in places if path.is_file()]
        exposed = [str(path) for path in kept if path.stat().st_mode & 0o077]
    except OSError as error:
        hint = "Run Roundhouse as the user who owns its state directory."
        return Finding("error", "secrets", f"The secrets cannot be looked at: {error}.", hint)
    if exposed:
        message = f"Other users may read {', '.join(exposed)}."
        return Finding("error", "secrets", message, f"chmod 600 {shlex.join(exposed)}")
    if not kept:
        return Finding("ok", "secrets", "None are kept yet; the first start generates them.")
    return Finding("ok", "secrets", f"All {len(kept)} are readable by their owner alone.")


# --- the database


def database(settings: Settings) -> Finding:
    if settings.mongodb.uri is None:
        return _embedded(settings.home)
    return _server(settings.mongodb.uri, settings.mongodb.database)


def _embedded(home: Path) -> Finding:
    mongod = EmbeddedMongod(home)
    try:
        status, hindrance = mongod.status(), mongod.hindrance()
        known = status.binary
        binary = known if known is not None and os.access(known, os.X_OK) else find_mongod()
    except (MongodError, OSError) as error:
        return Finding("error", "database", str(error), _SET_URI)
    if hindrance is not None:
        message = f"The embedded mongod has crashed and cannot be started again: {hindrance}."
        return Finding("error", "database", message, "Mend that; a Roundhouse that runs then starts it within 30 s.")
    state = f"runs on port {status.port} (process {status.pid})" if status.running else "is not running now"
    message = f"The embedded mongod {binary} {state}; it is meant for trials, so for production set MONGODB_URI."
    return Finding("warning", "database", message, _SET_URI)


def _server(uri: str, name: str) -> Finding:
    """Connects, and asks for what needs rights. The URI is never shown: it may hold a password."""
    milliseconds = int(_DATABASE_PATIENCE * 1000)
    try:
        with MongoClient[dict[str, Any]](
            uri,
            appname="roundhouse doctor",
            serverSelectionTimeoutMS=milliseconds,
            connectTimeoutMS=milliseconds,
            socketTimeoutMS=milliseconds,
        ) as client:
            hello = client.admin.command("hello")
            version = str(client.admin.command("buildInfo")["version"])
            client[name].list_collection_names()
    except (PyMongoError, OSError, ValueError) as error:
        return _unreachable(error, name)
    return server_finding(hello, version)


def _unreachable(error: Exception, name: str) -> Finding:
    match error:
        case InvalidURI():
            message = "MONGODB_URI cannot be parsed."
            hint = f"{_SET_URI} (signs in the password written as %XX)"
        case ConfigurationError():
            message, hint = f"MONGODB_URI cannot be used: {_short(error)}.", "Correct MONGODB_URI."
        case OperationFailure():
            message = f"MongoDB refuses the account of MONGODB_URI: {_short(error)}."
            hint = f"Give the right password, and the account the roles readWrite and dbAdmin on the database {name}."
        case ServerSelectionTimeoutError():
            message = f"No primary of MONGODB_URI answers within {_DATABASE_PATIENCE:.0f} s: {_short(error)}."
            hint = "Start MongoDB; a replica set that was never initiated needs `mongosh --eval 'rs.initiate()'` once."
        case _:
            message = f"MongoDB does not answer: {_short(error)}."
            hint = "See whether MONGODB_URI names the right host and port, and whether TLS is asked for on both sides."
    return Finding("error", "database", message, hint)


def _short(error: Exception) -> str:
    """Without the settings and the topology that PyMongo adds."""
    told = re.split(r" \(configured timeouts|, Timeout: |, full error: ", str(error), maxsplit=1)[0]
    return _first_line(told)


def server_finding(hello: Mapping[str, Any], version: str) -> Finding:
    """The verdict on a server that answers. ``hello``: its answer to the command of that name."""
    if int(version.partition(".")[0]) < OLDEST_MONGODB:
        message = f"MongoDB {version} is too old, {OLDEST_MONGODB} or newer is needed."
        return Finding("error", "database", message, "Upgrade MongoDB, or set MONGODB_URI to a newer one.")
    if hello.get("msg") == "isdbgrid":
        return Finding("ok", "database", f"MongoDB {version}, a sharded cluster.")
    replica_set = hello.get("setName")
    if replica_set is None:
        message = f"MongoDB {version} is no replica set, and only those have change streams."
        hint = "Start it by `mongod --replSet rs0 …` and type `mongosh --eval 'rs.initiate()'` once."
        return Finding("error", "database", message, hint)
    if not hello.get("isWritablePrimary"):
        message = f"MongoDB {version} at {hello.get('me')} is no primary of the replica set {replica_set}."
        return Finding("error", "database", message, "Take directConnection out of MONGODB_URI.")
    return Finding("ok", "database", f"MongoDB {version}, replica set {replica_set}, primary {hello.get('me')}.")


# --- the port


def port(settings: Settings) -> Finding:
    host, number = settings.server.host, settings.server.port
    try:
        bound(host, number).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return _taken(settings)
        message = f"Nobody may listen on {host} port {number}: {error.strerror or error}."
        return Finding(
            "error", "port", message, "Set SERVER_HOST to an address of this machine and SERVER_PORT above 1023."
        )
    return Finding("ok", "port", f"{host} port {number} is free.")


def _taken(settings: Settings) -> Finding:
    host, number = settings.server.host, settings.server.port
    supervisor, holders = _supervisor(settings), _listeners(number)
    pids = [holder.pid for holder in holders]
    # The sockets of another user's processes cannot be seen.
    if supervisor is not None and (supervisor.pid in pids or not pids):
        return Finding("ok", "port", f"{host} port {number} is used by Roundhouse itself (process {supervisor.pid}).")
    free_it = f"stop it, or `export SERVER_PORT={number + 1}`"
    if gateway := next((holder for holder in holders if "gateway.server" in (holder.info["cmdline"] or [])), None):
        message = f"{host} port {number} is used by a gateway that no `roundhouse up` of this state directory started."
        hint = f"All is well if process {gateway.pid} is your own `roundhouse gateway`; else {free_it}."
        return Finding("warning", "port", message, hint)
    by = ", ".join(f"process {it.pid} ({it.info['name']})" for it in holders) or "another user's program"
    return Finding("error", "port", f"{host} port {number} is taken by {by}.", f"{free_it[0].upper()}{free_it[1:]}.")


def _supervisor(settings: Settings) -> ProcessRecord | None:
    try:
        return running(settings)
    except OSError:
        # Another user's state directory, which is a finding of its own.
        return None


def _listeners(number: int) -> list[psutil.Process]:
    """Those whose sockets can be seen, with ``info``. Only root sees the sockets of other users."""
    found = []
    for process in psutil.process_iter(["name", "cmdline"]):
        try:
            sockets = process.net_connections("tcp")
        except (psutil.Error, OSError):
            continue
        if any(s.status == psutil.CONN_LISTEN and s.laddr.port == number for s in sockets):
            found.append(process)
    return found
