"""The health checks of the containers: ``python health.py gateway`` and ``python health.py worker``.

Exit status 0 and nothing said when all is well; else 1 and one sentence.
"""

import asyncio
import http.client
import socket
import sys

from pymongo.errors import PyMongoError

from broker.database import connect
from broker.logs import in_short
from broker.registry import Registry
from config import load_settings
from config.errors import RoundhouseError

# Seconds; the container's own limit is longer.
_PATIENCE = 4.0


def gateway() -> str | None:
    """What is wrong with the gateway in this container. It is asked over loopback, whatever it listens on besides."""
    port = load_settings().server.port
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE)
    try:
        connection.request("GET", "/health")
        answer = connection.getresponse()
        said = answer.read(1000).decode(errors="replace")
        return None if answer.status == http.client.OK else f"The gateway answers {answer.status}: {said}"
    except (OSError, http.client.HTTPException) as error:
        return f"The gateway does not answer on port {port}: {error}."
    finally:
        connection.close()


async def worker() -> str | None:
    """What is wrong with the worker in this container: whether the database has heard of it in the last seconds."""
    settings = load_settings()
    if settings.mongodb.uri is None:
        return "MONGODB_URI is not set, so no worker can be looked for."
    database = connect(settings.mongodb.uri, settings.mongodb.database)
    try:
        alive = await Registry(database).live_workers()
    except PyMongoError as error:
        return f"The database does not answer: {in_short(error)}"
    finally:
        await database.close()
    host = socket.gethostname()
    if not any(each.host == host for each in alive):
        return f"No worker of {host} has been heard of in the last seconds."
    return None


def main(arguments: list[str]) -> int:
    try:
        match arguments:
            case ["gateway"]:
                wrong = gateway()
            case ["worker"]:
                wrong = asyncio.run(worker())
            case _:
                wrong = "Say which: health.py gateway, or health.py worker."
    except RoundhouseError as error:
        wrong = error.message
    if wrong is not None:
        print(wrong, file=sys.stderr)
    return 0 if wrong is None else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
