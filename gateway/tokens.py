"""Bearer tokens: JSON Web Tokens (RFC 7519), signed with HS256 and nothing else."""

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from jose import jwk, jwt
from jose.exceptions import ExpiredSignatureError, JWTError

from gateway.problems import Problem

ALGORITHM = "HS256"
LEEWAY = 5
"""Seconds by which the clocks of two gateway hosts may differ."""

MAX_LENGTH = 4096
"""Characters: ours have about 400."""

REALM = 'Bearer realm="roundhouse"'
Kind = Literal["access", "refresh"]
_OPTIONS = {"leeway": LEEWAY} | {f"require_{claim}": True for claim in ("aud", "iss", "sub", "exp", "iat", "jti")}


@dataclass(frozen=True, slots=True)
class Claims:
    """What a checked token says. Times are seconds since 1970."""

    subject: str
    role: str
    kind: Kind
    id: str
    issued_at: int
    expires_at: int


@dataclass(frozen=True, slots=True)
class TokenPair:
    """``expires_in``: seconds that the access token lives."""

    access_token: str
    refresh_token: str
    expires_in: int


def token_missing() -> Problem:
    # RFC 6750 section 3.1: no error code where the request carried no credentials at all.
    return Problem(
        "token_missing",
        "This needs a bearer token in the Authorization header; POST /auth/token gives one.",
        headers={"WWW-Authenticate": REALM},
    )


def token_expired() -> Problem:
    return _refused("token_expired", "The token has expired; ask POST /auth/token for a new one.")


def token_invalid(reason: str) -> Problem:
    return _refused("token_invalid", f"The token is not valid: {reason}.")


def _refused(code: str, message: str) -> Problem:
    challenge = f'{REALM}, error="invalid_token", error_description="{message}"'
    return Problem(code, message, headers={"WWW-Authenticate": challenge})


class Tokens:
    """Issues and checks tokens. Lifetimes in seconds; ``now`` gives seconds since 1970."""

    def __init__(
        self,
        secret: str,
        *,
        issuer: str,
        audience: str,
        access_ttl: float,
        refresh_ttl: float,
        now: Callable[[], float] = time.time,
    ) -> None:
        # A key object: given a str, python-jose first tries whether it is JSON, and then takes what is in it.
        self._key = jwk.construct(secret, ALGORITHM)
        self._issuer = issuer
        self._audience = audience
        self._ttl: dict[Kind, float] = {"access": access_ttl, "refresh": refresh_ttl}
        self._now = now

    def issue(self, subject: str, role: str, kind: Kind = "access") -> str:
        issued_at = int(self._now())
        claims: dict[str, Any] = {
            "sub": subject,
            "role": role,
            "typ": kind,
            "iat": issued_at,
            "exp": issued_at + int(self._ttl[kind]),
            "jti": uuid.uuid4().hex,
            "aud": self._audience,
            "iss": self._issuer,
        }
        return jwt.encode(claims, self._key, algorithm=ALGORITHM)

    def pair(self, subject: str, role: str) -> TokenPair:
        access, refresh = self.issue(subject, role, "access"), self.issue(subject, role, "refresh")
        return TokenPair(access, refresh, int(self._ttl["access"]))

    def verify(self, token: str, kind: Kind = "access") -> Claims:
        """Raises Problem: ``token_expired`` or ``token_invalid``."""
        claims = self._decode(token)
        if claims.get("typ") != kind:
            raise token_invalid(f"it is no {kind} token")
        role, subject = claims.get("role"), claims["sub"]
        if not isinstance(role, str) or not role or not subject:
            raise token_invalid("it names no subject or no role")
        return Claims(subject, role, kind, claims["jti"], int(claims["iat"]), int(claims["exp"]))

    def _decode(self, token: str) -> dict[str, Any]:
        if len(token) > MAX_LENGTH:
            raise token_invalid(f"it is longer than {MAX_LENGTH} characters")
        try:
            return jwt.decode(
                token,
                self._key,
                algorithms=[ALGORITHM],
                audience=self._audience,
                issuer=self._issuer,
                options=_OPTIONS,
            )
        except ExpiredSignatureError as error:
            raise token_expired() from error
        except JWTError as error:
            raise token_invalid("it was not issued here, or not for this service") from error
        # python-jose lets these out on a deeply nested header and on claims of another type.
        except (RecursionError, TypeError, ValueError, OverflowError) as error:
            raise token_invalid("it is malformed") from error
