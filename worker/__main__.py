"""``python -m worker``: one worker process. ``roundhouse worker`` starts it."""

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Sequence

import uvloop

from broker import logs
from broker.broker import Broker
from broker.naming import named
from broker.open_files import allow_open_files
from broker.parent import die_with_parent
from config import Settings, load_settings
from config.errors import RoundhouseError
from ocr import scratch
from worker.engine_process import sweep_leftovers
from worker.engines.factory import build_engines
from worker.worker import Worker, new_identity

log = logging.getLogger(__name__)


async def serve(settings: Settings, only: Sequence[str] | None) -> None:
    """Works until SIGTERM or SIGINT; a second one hands back what runs, at once."""
    if left := await sweep_leftovers(settings.home):
        log.warning("%d engines of a worker that was killed have been ended", left)
    for directory in await asyncio.to_thread(scratch.sweep_leftovers):
        log.warning("%s was left by a worker that was killed, and is removed", directory)
    broker = await Broker.open(settings, worker=new_identity())
    worker = Worker(broker, build_engines(settings, only))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, worker.drain)
    broker.start()
    try:
        await worker.run()
    finally:
        await broker.close()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="roundhouse worker", description="Claims jobs and runs them on engines.")
    parser.add_argument("--models", help="comma-separated names; default: every configured model it can serve")
    parser.add_argument("--supervised", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.supervised:
        die_with_parent()
    logs.configure()
    allow_open_files()
    try:
        settings = load_settings()
        only = [named(settings, name) for name in options.models.split(",")] if options.models else None
        uvloop.run(serve(settings, only))
    except RoundhouseError as error:
        print(f"roundhouse worker: {error.message}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
