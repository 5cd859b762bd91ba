"""The port of the gateway: whether it is free, and else who has it."""

import errno

import psutil

from broker.daemons import ProcessRecord
from config import Settings
from gateway.commands.finding import Finding
from gateway.supervisor import bound, running

LAST_PORT = 65535


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
    free_it = f"stop it, or `export SERVER_PORT={number + 1 if number < LAST_PORT else number - 1}`"
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
