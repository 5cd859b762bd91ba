"""Temporary directories of decoders, and what killed processes leave of them."""

import asyncio
import os
import shutil
import sys
from pathlib import Path

from ocr.scratch import locked, scratch_directory, started, sweep_leftovers
from tests.unit.ocr.conftest import names

NOBODY = 2**22 + 1
"""Above the largest process number that Linux gives out (pid_max, proc(5))."""
VICTIM = """
import asyncio, sys
from ocr.decoder import PageDecoder
from tests.documents import scanned_pdf
async def main():
    async with PageDecoder(scanned_pdf(1), "application/pdf") as decoder:
        print("open", flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""


def left_behind(scratch: Path, name: str) -> Path:
    directory = scratch / name
    directory.mkdir()
    (directory / "document").write_bytes(b"secret")
    return directory


async def test_what_a_killed_process_left_is_removed_and_only_that(scratch: Path) -> None:
    root = str(Path(__file__).parents[3])
    victim = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        VICTIM,
        env={**os.environ, "PYTHONPATH": root, "TMPDIR": str(scratch)},
        stdout=asyncio.subprocess.PIPE,
    )
    assert victim.stdout is not None
    assert await victim.stdout.readline() == b"open\n"
    (name,) = names(scratch)
    directory = scratch / name
    assert directory.name.startswith(f"roundhouse-ocr-{victim.pid}-{started(victim.pid)}-")
    assert sweep_leftovers() == []
    victim.kill()
    await victim.wait()
    with scratch_directory() as mine:
        assert sweep_leftovers() == [directory]
        assert names(scratch) == [mine.name]


def test_a_number_that_another_process_has_by_now_does_not_protect(scratch: Path) -> None:
    me, born = os.getpid(), started(os.getpid())
    assert born is not None
    old = left_behind(scratch, f"roundhouse-ocr-{me}-{born - 1}-abcd")
    own = left_behind(scratch, f"roundhouse-ocr-{me}-{born}-abcd")
    assert sweep_leftovers() == [old]
    shutil.rmtree(own)


def test_a_directory_whose_maker_lives_unseen_is_kept_by_its_lock(scratch: Path) -> None:
    directory = left_behind(scratch, f"roundhouse-ocr-{NOBODY}-5-abcd")
    with locked(directory):
        assert sweep_leftovers() == []
    assert sweep_leftovers() == [directory]


def test_what_is_not_ours_or_not_a_directory_stays(scratch: Path) -> None:
    elsewhere = scratch / "elsewhere"
    elsewhere.mkdir()
    link = scratch / f"roundhouse-ocr-{NOBODY}-5-link"
    link.symlink_to(elsewhere)
    file = scratch / f"roundhouse-ocr-{NOBODY}-5-file"
    file.write_text("x")
    other = left_behind(scratch, "roundhouse-ocr-something")
    assert sweep_leftovers() == []
    assert names(scratch) == sorted([elsewhere.name, link.name, file.name, other.name])
    link.unlink()
    file.unlink()
    elsewhere.rmdir()
    shutil.rmtree(other)


def test_a_process_that_is_not_there_has_not_started() -> None:
    assert started(NOBODY) is None
    assert (started(os.getpid()) or 0) > 0
