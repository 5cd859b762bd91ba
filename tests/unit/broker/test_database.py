"""What is said of a MONGODB_URI with which no client can be made."""

from pathlib import Path

import pytest

from broker.database import connect
from config.errors import ConfigError


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("mongodb://ann:hun/ter2@host", "signs in a password are written as %XX"),
        ("mongodb://ann:hunter2/db", "its hosts, password or options cannot be understood"),
        ("mongodb://ann:hunter2@host:99999", "its hosts, password or options cannot be understood"),
        ("mongodb://ann:hunter2@one,two/?directConnection=true", "multiple hosts"),
        ("mongodb://ann:hunter2@host/?tls=true&tlsCAFile=/nowhere/ca.pem", "/nowhere/ca.pem: No such file"),
    ],
)
async def test_a_uri_that_cannot_be_used_is_refused_and_not_shown(uri: str, told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        connect(uri, "roundhouse")
    assert refused.value.message.startswith("MONGODB_URI cannot be used: ")
    assert told in refused.value.message
    assert "hun" not in refused.value.message


async def test_a_file_of_the_uri_that_holds_no_certificate_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("none")
    with pytest.raises(ConfigError, match=r"^MONGODB_URI cannot be used: "):
        connect(f"mongodb://host/?tls=true&tlsCAFile={tmp_path / 'ca.pem'}", "roundhouse")
