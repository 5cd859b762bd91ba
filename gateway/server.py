"""One gateway process: uvicorn on a listening socket that its supervisor opened (``python -m gateway.server``)."""

import argparse
import asyncio
import signal
import socket
import sys
from collections.abc import Sequence
from types import FrameType

import uvicorn
import uvloop

from broker import logs
from broker.broker import Broker
from broker.open_files import allow_open_files
from broker.parent import die_with_parent
from config import Settings, load_settings
from config.errors import RoundhouseError
from gateway.app import create_app
from gateway.websocket.jobs import MAX_MESSAGE
from gateway.websocket.protocol import BoundedProtocol

# Seconds for answers under way when the gateway stops. Long-polls are sent home at once.
GRACE = 10
# Seconds for which a connection is kept between two requests: longer than clients and the balancers between keep one
# (60 s at most, as they come), or they would send a request on one that is just being closed.
KEEP_ALIVE = 75


class GatewayServer(uvicorn.Server):
    """Sends waiting clients home with a 202 as soon as it is told to stop: their job goes on without us."""

    def __init__(self, config: uvicorn.Config, broker: Broker) -> None:
        super().__init__(config)
        self._broker = broker
        self._loop = asyncio.get_running_loop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._loop.call_soon_threadsafe(self._broker.feed.close)
        super().handle_exit(sig, frame)


def configured(settings: Settings, broker: Broker) -> uvicorn.Config:
    """The application on uvicorn, as it is always served."""
    return uvicorn.Config(
        create_app(settings, broker),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE,
        timeout_keep_alive=KEEP_ALIVE,
        ws=BoundedProtocol,
        ws_max_size=MAX_MESSAGE,
        ws_ping_interval=settings.server.heartbeat,
        # A slow reader's answer may take any time; of one who has vanished TCP tells.
        ws_ping_timeout=None,
        ws_per_message_deflate=False,
    )


async def serve(settings: Settings, listener: socket.socket) -> None:
    """Serves until SIGTERM or SIGINT."""
    broker = await Broker.open(settings)
    await GatewayServer(configured(settings, broker), broker).serve(sockets=[listener])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m gateway.server")
    parser.add_argument("--fd", type=int, required=True, help="the listening socket's file descriptor")
    options = parser.parse_args(arguments)
    die_with_parent()
    logs.configure()
    allow_open_files()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        settings = load_settings()
        with socket.socket(fileno=options.fd) as listener, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            # A mongod that this process may start would else hold the port after us, and never answer on it.
            listener.set_inheritable(False)
            runner.run(serve(settings, listener))
    except RoundhouseError as error:
        print(f"roundhouse gateway: {error.message}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
