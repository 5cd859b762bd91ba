"""Where `roundhouse submit` writes what it has fetched."""

import os
import stat
import threading
from collections.abc import Generator
from pathlib import Path
from typing import cast

import click
import pytest

from gateway.commands.submit import Body, check, write
from roundhouse import Client, RoundhouseApiError, Unreachable

JOB: Body = {"request_id": "0" * 24, "status": "completed", "result": {"text": "Grüße", "pages": []}, "error": None}


class Gateway:
    """Gives these pieces of a result, and then the error, if there is one."""

    def __init__(self, *pieces: bytes, error: BaseException | None = None) -> None:
        self._pieces, self._error = pieces, error

    def result_chunks(self, job_id: str, wanted: str) -> Generator[bytes, None, None]:
        yield from self._pieces
        if self._error is not None:
            raise self._error


def fetch(gateway: Gateway, output: Path, wanted: str | None = "pdf", *, as_json: bool = False) -> None:
    write(cast(Client, gateway), JOB, output, wanted, as_json)


@pytest.mark.parametrize("pieces", [(), (b"%PDF-1.7\n",)])
@pytest.mark.parametrize("error", [RoundhouseApiError("It has expired."), Unreachable("gone"), KeyboardInterrupt()])
def test_a_file_stays_as_it_was_where_its_result_does_not_come(
    tmp_path: Path, pieces: tuple[bytes, ...], error: BaseException
) -> None:
    output = tmp_path / "scan.pdf"
    with pytest.raises(type(error)):
        fetch(Gateway(*pieces, error=error), output)
    assert list(tmp_path.iterdir()) == []
    output.write_bytes(b"the original")
    with pytest.raises(type(error)):
        fetch(Gateway(*pieces, error=error), output)
    assert output.read_bytes() == b"the original"
    assert list(tmp_path.iterdir()) == [output]


def test_what_is_whole_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    output = tmp_path / "out"
    for wanted, as_json, expected in (
        ("pdf", False, b"%PDF-1.7\nwhole"),
        (None, False, "Grüße\n".encode()),
        (None, True, '"text": "Grüße"'.encode()),
    ):
        output.write_bytes(b"before")
        fetch(Gateway(b"%PDF-1.7\n", b"whole"), output, wanted, as_json=as_json)
        assert expected in output.read_bytes()
        assert list(tmp_path.iterdir()) == [output]


def test_a_file_keeps_its_mode_and_a_new_one_gets_that_of_any_file(tmp_path: Path) -> None:
    own, output, new = tmp_path / "own", tmp_path / "out", tmp_path / "new"
    own.touch()
    output.touch(mode=0o640)
    output.chmod(0o640)
    fetch(Gateway(b"%PDF"), output)
    fetch(Gateway(b"%PDF"), new)
    assert stat.S_IMODE(output.stat().st_mode) == 0o640
    assert new.stat().st_mode == own.stat().st_mode


def test_a_link_stays_one_and_its_file_is_written(tmp_path: Path) -> None:
    link, target = tmp_path / "link", tmp_path / "elsewhere" / "target"
    target.parent.mkdir()
    link.symlink_to(target)
    check(link, "pdf", False)
    fetch(Gateway(b"%PDF"), link)
    assert link.is_symlink()
    assert target.read_bytes() == b"%PDF"


def test_a_pipe_is_written_as_it_comes(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    check(pipe, "pdf", False)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    fetch(Gateway(b"%PDF", b"-1.7"), pipe)
    reader.join()
    assert read == [b"%PDF-1.7"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_file_that_is_open_already_is_not_replaced_by_another(tmp_path: Path) -> None:
    with (tmp_path / "redirected").open("w+b") as redirected:
        name = Path(f"/dev/fd/{redirected.fileno()}")
        check(name, "pdf", False)
        fetch(Gateway(b"%PDF"), name)
        assert redirected.read() == b"%PDF"


def test_where_nothing_can_be_written_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for output, says in (
        (tmp_path / "missing" / "out.txt", f"There is no directory {tmp_path / 'missing'}"),
        (tmp_path / "file" / "out.txt", f"There is no directory {tmp_path / 'file'}"),
        (tmp_path, "is a directory"),
    ):
        with pytest.raises(click.UsageError, match=says):
            check(output, None, False)
    check(tmp_path / "out.txt", None, False)
    # Root may write anywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(click.UsageError, match=f"{tmp_path} may not be written to"):
        check(tmp_path / "out.txt", None, False)
    check(Path("/dev/stdout"), None, False)
