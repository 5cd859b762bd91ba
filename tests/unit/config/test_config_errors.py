import pickle
import subprocess
import sys

from config.errors import ConfigError, RoundhouseError


def test_an_error_carries_a_code_a_sentence_and_details() -> None:
    error = ConfigError("no such thing", problems=["a", "b"])
    assert error.code == "config_invalid"
    assert str(error) == error.message == "no such thing"
    assert error.details == {"problems": ["a", "b"]}
    assert isinstance(error, RoundhouseError)
    assert RoundhouseError("x").code == "internal_error"


def test_an_error_survives_the_way_between_processes() -> None:
    error = pickle.loads(pickle.dumps(ConfigError("no such thing", line=3)))
    assert (error.message, error.details) == ("no such thing", {"line": 3})


def test_the_errors_load_without_pydantic_and_yaml() -> None:
    script = "import sys, config.errors; print([m for m in ('pydantic', 'yaml') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_of_the_package_is_there() -> None:
    import config

    assert all(getattr(config, name) is not None for name in config.__all__)
    assert not hasattr(config, "no_such_name")
