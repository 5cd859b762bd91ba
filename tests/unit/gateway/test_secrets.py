import multiprocessing
import re
import stat
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from config.errors import ConfigError
from gateway.secrets import MIN_JWT_SECRET, admin_password, generate_password, jwt_secret, kept_secret


def test_a_secret_is_made_once_and_kept_for_its_owner_alone(tmp_path: Path) -> None:
    first = jwt_secret(tmp_path)
    assert len(first.encode()) >= MIN_JWT_SECRET
    assert jwt_secret(tmp_path) == first
    path = tmp_path / "secrets" / "jwt_secret"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [file.name for file in path.parent.iterdir()] == ["jwt_secret"]


def ask(home: Path, barrier: Barrier, answers: "multiprocessing.Queue[str]") -> None:
    barrier.wait()
    answers.put(jwt_secret(home))


def test_processes_that_start_at_once_agree_on_one_secret(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(4), context.Queue()
    processes = [context.Process(target=ask, args=(tmp_path, barrier, answers)) for _ in range(4)]
    for process in processes:
        process.start()
    secrets = {answers.get(timeout=30) for _ in processes}
    for process in processes:
        process.join()
    answers.close()
    answers.join_thread()
    assert len(secrets) == 1


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(UnicodeEncodeError):
        kept_secret(tmp_path / "secrets" / "it", lambda: "\ud800")
    assert list((tmp_path / "secrets").iterdir()) == []


def test_a_generated_password_can_be_read_and_typed() -> None:
    passwords = {generate_password() for _ in range(100)}
    assert len(passwords) == 100
    assert all(re.fullmatch(r"([a-hj-km-np-z2-9]{5}-){3}[a-hj-km-np-z2-9]{5}", password) for password in passwords)


def test_a_given_secret_goes_before_the_kept_one(tmp_path: Path) -> None:
    assert jwt_secret(tmp_path, "x" * 32) == "x" * 32
    assert admin_password(tmp_path, "correct horse") == "correct horse"
    assert not (tmp_path / "secrets").exists()


def test_a_short_signing_secret_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="JWT_SECRET is shorter than 32 bytes"):
        jwt_secret(tmp_path, "x" * 31)


def test_a_secret_that_others_may_read_is_refused(tmp_path: Path) -> None:
    admin_password(tmp_path)
    path = tmp_path / "secrets" / "admin_password"
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="Others may read"):
        admin_password(tmp_path)


def test_an_empty_secret_is_refused_rather_than_used(tmp_path: Path) -> None:
    path = tmp_path / "secrets" / "jwt_secret"
    path.parent.mkdir()
    path.touch(mode=0o600)
    with pytest.raises(ConfigError, match="is empty"):
        jwt_secret(tmp_path)


@pytest.mark.parametrize(
    ("secret", "fault"),
    [
        (b"abc", "shorter than 8 characters"),
        (b"admin", "shorter than 8 characters"),
        (b"x" * 1025, "longer than 1024 characters"),
        (b"\xff" * 32, "not in UTF-8"),
    ],
)
def test_a_kept_password_that_no_user_may_have_is_refused(tmp_path: Path, secret: bytes, fault: str) -> None:
    path = tmp_path / "secrets" / "admin_password"
    path.parent.mkdir()
    path.touch(mode=0o600)
    path.write_bytes(secret)
    with pytest.raises(ConfigError, match=rf"{path} is {fault}"):
        admin_password(tmp_path)
    path.write_text("correct horse\n")
    assert admin_password(tmp_path) == "correct horse"
