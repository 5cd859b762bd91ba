"""A program with the habits of an engine, good and bad, for the tests of what looks after engines.

``python engine_program.py SOCKET HABIT...``: answers ``GET /health`` on the Unix socket SOCKET, and what else vLLM's
server does when it is asked for an answer, to sleep, and to wake. Says on standard output what it does. Ends by SIGTERM
with status 0. Where ENGINE_MEMORY names a file, it writes there what it holds of its GPU: its pid, the GPU's uuid and
ENGINE_HOLDS bytes, a tenth of them while it sleeps. Habits:

core     has a child in its process group that heeds no SIGTERM
escaped  has a child in a session of its own that heeds no SIGTERM
tracker  has a child that heeds no SIGTERM, and says "cleaned" when all the others are gone
worker   has a child in its process group
deaf     heeds no SIGTERM itself
slow     is healthy only at the third question, and logs the phases of a start meanwhile
never    is never healthy
fails    ends with status 1 and an error
sick     is unhealthy after the first question, and lives on
talks    streams an answer without end
greedy   sleeps, but holds what it held
awake    says that it went to sleep, but did not
dull     has no such thing as sleep
dead     never answers when it is to wake
vectors  makes vectors, and completes nothing
dreams   wakes, but ends no answer with a reason
loose    reads pages without a guard against loops
"""

import json
import os
import signal
import sys
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer
from typing import Any

PHASES = (
    "INFO 11-21 07:51:28 [runner.py:68] Starting to load model /x...",
    "INFO [loader.py:5] Loading weights took 1 s",
)

# Tokens of the prompt with the picture that a start is examined with, by the mode that is set.
PROMPTS = {"tiny": 80, "small": 118, "base": 280, "large": 428, "gundam": 490}

# All but the tracker hold its writing end open while they live.
OTHERS = os.pipe()


def say(line: str) -> None:
    """At once and whole: the log is also that of other threads, and of what goes wrong in them."""
    os.write(1, f"{line}\n".encode())


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


def hold(share: float) -> None:
    if path := os.environ.get("ENGINE_MEMORY"):
        held = int(int(os.environ["ENGINE_HOLDS"]) * share)
        told = {"pid": os.getpid(), "uuid": os.environ.get("CUDA_VISIBLE_DEVICES"), "bytes": held}
        Path(path + ".new").write_text(json.dumps(told))
        Path(path + ".new").replace(path)


class Server(ThreadingUnixStreamServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing is wrong where a client does not wait for its answer."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Answers(BaseHTTPRequestHandler):
    asked = 0
    asleep = False

    def do_GET(self) -> None:
        if self.path == "/is_sleeping":
            self.tell(200, {"is_sleeping": Answers.asleep})
        elif self.path == "/v1/models":
            self.tell(200, {"data": [{"id": "tiny", "max_model_len": 8192}]})
        else:
            self.tell(self.status())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        say(f"asked for {self.path}" + (f" of {json.loads(body)['model']}" if body else ""))
        match self.path:
            case "/sleep?level=1":
                self.fall_asleep()
            case "/wake_up":
                self.wake()
            case _ if Answers.asleep:
                threading.Event().wait()
            case "/v1/completions" if "vectors" in sys.argv:
                self.tell(400, {"error": {"message": "The model does not support Completions API"}})
            case "/v1/embeddings":
                self.tell(200, {"data": [{"index": 0, "embedding": [1.0]}]})
            case "/v1/completions":
                self.tell(
                    200, {"choices": [{"text": "a", "finish_reason": None if "dreams" in sys.argv else "length"}]}
                )
            case "/tokenize":
                text = json.loads(body)["prompt"]
                self.tell(200, {"tokens": [ord(text)] if len(text) == 1 else [len(text)]})
            case _ if b"allowed_token_ids" in body:
                self.examined()
            case _:
                self.chat()

    def examined(self) -> None:
        message = {"content": "111" if "loose" in sys.argv else "112"}
        tokens = PROMPTS[os.environ.get("ROUNDHOUSE_OCR_MODE", "gundam")]
        self.tell(200, {"choices": [{"message": message}], "usage": {"prompt_tokens": tokens}})

    def fall_asleep(self) -> None:
        if "dull" in sys.argv:
            self.tell(404, {"detail": "Not Found"})
            return
        Answers.asleep = "awake" not in sys.argv
        hold(1.0 if "greedy" in sys.argv else 0.1)
        self.tell(200)

    def wake(self) -> None:
        if "dead" in sys.argv:
            threading.Event().wait()
        Answers.asleep = False
        hold(1.0)
        self.tell(200)

    def chat(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        with suppress(BrokenPipeError):
            while "talks" in sys.argv:
                self.event({"delta": {"content": "word "}, "finish_reason": None})
                threading.Event().wait(0.02)
            self.event({"delta": {"content": "answer"}, "finish_reason": "stop"})

    def event(self, choice: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps({'choices': [choice]})}\n\n".encode())
        self.wfile.flush()

    def tell(self, status: int, body: dict[str, Any] | None = None) -> None:
        content = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def status(self) -> int:
        Answers.asked += 1
        if "never" in sys.argv:
            return 404
        if "sick" in sys.argv:
            return 200 if Answers.asked == 1 else 503
        if "slow" in sys.argv and Answers.asked <= len(PHASES):
            say(PHASES[Answers.asked - 1])
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
    hold(1.0)
    with Server(sys.argv[1], Answers) as server:
        say("up")
        server.serve_forever()


if __name__ == "__main__":
    main()
