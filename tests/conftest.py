"""One real mongod for the whole test run, shared by all pytest-xdist workers, and a fresh database per test."""

import asyncio
import gc
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import hypothesis
import pytest
from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase

from broker.mongod import EmbeddedMongod

_HOME = pytest.StashKey[Path]()
_WARDEN = pytest.StashKey["subprocess.Popen[bytes]"]()

# No example has to be quick on a machine that has other work. All else stays as it is by default, and in CI as there.
hypothesis.settings.register_profile(
    "roundhouse", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("roundhouse")

# Bytes; a run's mongod takes less than half of it.
ROOM = 4 * 2**30

# Ends mongod when its standard input is closed: at the end of the run, however the run ended, a kill -9 included.
_STOP_AT_EOF = """
import sys
sys.stdin.read()
import asyncio, pathlib, shutil
from broker.mongod import EmbeddedMongod
home = pathlib.Path(sys.argv[1])
asyncio.run(EmbeddedMongod(home).stop(timeout=10))
shutil.rmtree(home)
"""


def pytest_configure(config: pytest.Config) -> None:
    # A run that a script has put in the background ignores Ctrl-C, as would all commands that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    workerinput: dict[str, Any] | None = getattr(config, "workerinput", None)
    if workerinput is not None:
        config.stash[_HOME] = Path(workerinput["mongod_home"])
        return
    home = Path(tempfile.mkdtemp(prefix="roundhouse-tests-", dir=_in_memory()))
    config.stash[_HOME] = home
    config.stash[_WARDEN] = subprocess.Popen(
        [sys.executable, "-c", _STOP_AT_EOF, home],
        stdin=subprocess.PIPE,
        cwd=Path(__file__).parent.parent,
        start_new_session=True,
    )


def _in_memory() -> str | None:
    """Where the run's mongod waits for no disk, if there is room: what a disk keeps is tested on one of its own."""
    memory = Path("/dev/shm")
    return str(memory) if memory.is_dir() and shutil.disk_usage(memory).free >= ROOM else None


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Called by pytest-xdist in the controller for each worker that it starts."""
    node.workerinput["mongod_home"] = str(node.config.stash[_HOME])


def pytest_unconfigure(config: pytest.Config) -> None:
    if warden := config.stash.get(_WARDEN, None):
        warden.communicate()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """A test that hangs is ended by ``faulthandler_timeout``; just before, it is told what its tasks wait for."""
    hung = threading.Timer(float(item.config.getini("faulthandler_timeout")) - 10, _tell_tasks, [item.nodeid])
    hung.daemon = True
    hung.start()
    try:
        return (yield)
    finally:
        hung.cancel()


def _tell_tasks(test: str) -> None:
    print(f"{test} hangs", file=sys.__stderr__)
    for task in [found for found in gc.get_objects() if isinstance(found, asyncio.Task)]:
        if not task.done():
            task.print_stack(file=sys.__stderr__)


@pytest.fixture(scope="session")
def mongod_uri(pytestconfig: pytest.Config) -> str:
    """The URI of the run's mongod, with root credentials. Do not kill this one: all tests share it."""
    mongod = EmbeddedMongod(pytestconfig.stash[_HOME], cache=0.25)
    with ThreadPoolExecutor(1) as thread:  # this thread's event loop is pytest-asyncio's
        return thread.submit(lambda: asyncio.run(mongod.ensure())).result()


@pytest.fixture
async def database(mongod_uri: str) -> AsyncIterator[AsyncDatabase[dict[str, Any]]]:
    """An empty database of the test's own; times come back with their time zone."""
    async with AsyncMongoClient[dict[str, Any]](mongod_uri, tz_aware=True) as client:
        name = f"test_{uuid4().hex}"
        yield client[name]
        await client.drop_database(name)
