import base64
import json
import time
from typing import Any

import pytest
from jose import jwt

from gateway.problems import Problem
from gateway.tokens import LEEWAY, MAX_LENGTH, Kind, Tokens

SECRET = "a secret that is as long as it has to be"


def tokens(secret: str = SECRET, **changes: Any) -> Tokens:
    settings = {"issuer": "here", "audience": "roundhouse", "access_ttl": 3600, "refresh_ttl": 86400} | changes
    return Tokens(secret, **settings)


def claims(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    usual = {
        "sub": "ada",
        "role": "user",
        "typ": "access",
        "iat": now,
        "exp": now + 60,
        "jti": "1",
        "aud": "roundhouse",
        "iss": "here",
    }
    return {name: value for name, value in (usual | changes).items() if value is not None}


def code_for(token: str, kind: Kind = "access") -> str:
    with pytest.raises(Problem) as caught:
        tokens().verify(token, kind)
    assert caught.value.status == 401
    assert caught.value.headers["WWW-Authenticate"].startswith('Bearer realm="roundhouse", error="invalid_token"')
    return caught.value.code


def segment(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def test_a_token_tells_who_bears_it() -> None:
    now = int(time.time())
    found = tokens(now=lambda: now).verify(tokens(now=lambda: now).issue("ada", "user"))
    assert (found.subject, found.role, found.kind, found.issued_at, found.expires_at) == (
        "ada",
        "user",
        "access",
        now,
        now + 3600,
    )


def test_each_token_has_an_id_of_its_own() -> None:
    pair = tokens().pair("ada", "user")
    assert pair.expires_in == 3600
    assert tokens().verify(pair.access_token).id != tokens().verify(pair.refresh_token, "refresh").id


def test_the_two_kinds_do_not_stand_in_for_each_other() -> None:
    pair = tokens().pair("ada", "user")
    assert code_for(pair.refresh_token) == "token_invalid"
    assert code_for(pair.access_token, "refresh") == "token_invalid"


def test_an_expired_token_is_told_so_after_a_small_leeway() -> None:
    now = time.time()
    late = tokens(now=lambda: now - 3600 - LEEWAY - 2).issue("ada", "user")
    just = tokens(now=lambda: now - 3600 - LEEWAY + 3).issue("ada", "user")
    assert code_for(late) == "token_expired"
    assert tokens().verify(just).subject == "ada"


def test_a_token_signed_with_another_key_is_refused() -> None:
    assert code_for(tokens("another secret, and long enough as well").issue("ada", "admin")) == "token_invalid"


def test_a_token_without_a_signature_is_refused() -> None:
    for algorithm in ("none", "None", "NONE", ""):
        unsigned = f"{segment({'alg': algorithm, 'typ': 'JWT'})}.{segment(claims(role='admin'))}."
        assert code_for(unsigned) == "token_invalid"


def test_another_algorithm_with_the_right_key_is_refused() -> None:
    assert code_for(jwt.encode(claims(), SECRET, algorithm="HS512")) == "token_invalid"


@pytest.mark.parametrize("change", [{"aud": "elsewhere"}, {"aud": ["elsewhere"]}, {"iss": "elsewhere"}, {"typ": "id"}])
def test_a_token_for_another_service_is_refused(change: dict[str, Any]) -> None:
    assert code_for(jwt.encode(claims(**change), SECRET)) == "token_invalid"


@pytest.mark.parametrize("claim", ["sub", "role", "typ", "iat", "exp", "jti", "aud", "iss"])
def test_every_claim_has_to_be_there(claim: str) -> None:
    assert tokens().verify(jwt.encode(claims(), SECRET)).subject == "ada"
    assert code_for(jwt.encode(claims(**{claim: None}), SECRET)) == "token_invalid"


@pytest.mark.parametrize(
    "change",
    [{"exp": []}, {"exp": "soon"}, {"exp": float("inf")}, {"iat": {}}, {"sub": 7}, {"sub": ""}, {"role": ["admin"]}],
)
def test_a_claim_of_the_wrong_type_is_refused(change: dict[str, Any]) -> None:
    assert code_for(jwt.encode(claims(**change), SECRET)) == "token_invalid"


@pytest.mark.parametrize(
    "token",
    ["", "x", "a.b.c", "....", "é.é.é", "a" * (MAX_LENGTH + 1), segment({"alg": "HS256"}) + ".e30.", "bnVsbA.e30.x"],
)
def test_what_is_no_token_is_refused(token: str) -> None:
    assert code_for(token) == "token_invalid"


def test_a_deeply_nested_header_is_refused() -> None:
    header = base64.urlsafe_b64encode(b"[" * 2900).decode().rstrip("=")
    assert code_for(f"{header}.e30.x") == "token_invalid"


def test_a_secret_that_is_json_is_taken_as_it_stands() -> None:
    secret = json.dumps({"keys": [], "padding": "x" * 40})
    assert tokens(secret).verify(tokens(secret).issue("ada", "user")).subject == "ada"
