"""uvicorn and Starlette with nothing behind them: 300 bytes of JSON in, 300 bytes out. The floor of any gateway."""

import socket
import sys

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from broker.parent import die_with_parent
from tests.benchmarks.work import work


async def answer(request: Request) -> JSONResponse:
    return JSONResponse(work(await request.json()))


app = Starlette(routes=[Route("/jobs", answer, methods=["POST"])])


class Server(uvicorn.Server):
    """Says so when it is ready."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print("ready", flush=True)


if __name__ == "__main__":
    die_with_parent()
    config = uvicorn.Config(app, port=int(sys.argv[1]), log_level="error", access_log=False, ws="none", loop="uvloop")
    Server(config).run()
