"""A program with the habits of an engine, good and bad, for the tests of what looks after engines.

``python engine_program.py SOCKET HABIT...``: answers ``GET /health`` on the Unix socket SOCKET and says on standard
output what it does. Ends by SIGTERM with status 0. Habits:

core     has a child in its process group that heeds no SIGTERM
escaped  has a child in a session of its own that heeds no SIGTERM
tracker  has a child that heeds no SIGTERM, and says "cleaned" when all the others are gone
worker   has a child in its process group
deaf     heeds no SIGTERM itself
slow     is healthy only at the third question, and logs the phases of a start meanwhile
never    is never healthy
fails    ends with status 1 and an error
sick     is unhealthy after the first question, and lives on
"""

import os
import signal
import sys
from http.server import BaseHTTPRequestHandler
from socketserver import UnixStreamServer

PHASES = (
    "INFO 11-21 07:51:28 [runner.py:68] Starting to load model /x...",
    "INFO [loader.py:5] Loading weights took 1 s",
)

# All but the tracker hold its writing end open while they live.
OTHERS = os.pipe()


def say(line: str) -> None:
    print(line, flush=True)


def child(name: str) -> None:
    pid = os.fork()
    if pid:
        say(f"{name} {pid}")
        return
    signal.signal(signal.SIGTERM, signal.SIG_DFL if name == "worker" else signal.SIG_IGN)
    if name == "escaped":
        os.setsid()
    if name == "tracker":
        os.close(OTHERS[1])
        os.read(OTHERS[0], 1)
        say("cleaned")
        os._exit(0)
    while True:
        signal.pause()


class Health(BaseHTTPRequestHandler):
    asked = 0

    def do_GET(self) -> None:
        self.send_response(self.status())
        self.send_header("Content-Length", "0")
        self.end_headers()

    def status(self) -> int:
        Health.asked += 1
        if "never" in sys.argv:
            return 404
        if "sick" in sys.argv:
            return 200 if Health.asked == 1 else 503
        if "slow" in sys.argv and Health.asked <= len(PHASES):
            say(PHASES[Health.asked - 1])
            return 404
        return 200

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: object) -> None:
        """Silent: the log is for what the tests look for."""


def main() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN if "deaf" in sys.argv else lambda *_: sys.exit(0))
    if "fails" in sys.argv:
        say("(EngineCore pid=7) ERROR 11-21 07:51:28 [core.py:9] torch.OutOfMemoryError: CUDA out of memory.")
        say("RuntimeError: Engine core initialization failed. See root cause above.")
        sys.exit(1)
    for name in ("tracker", "worker", "core", "escaped"):
        if name in sys.argv:
            child(name)
    with UnixStreamServer(sys.argv[1], Health) as server:
        say("up")
        server.serve_forever()


if __name__ == "__main__":
    main()
