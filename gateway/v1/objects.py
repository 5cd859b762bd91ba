"""What of a request has keys of the client's own: JSON schemas, metadata, biases. All bounded, and fit to be kept."""

import json
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints
from pydantic_core import PydanticCustomError

from broker.storable import levels, unstorable
from gateway.payloads import MAX_KEYS, few_keys

# What a whole tools list, a schema of an answer, or the arguments for a template may take, in characters of JSON.
MAX_SCHEMA = 64 * 1024
# How deep those may be nested.
MAX_DEPTH = 30
# Characters of a key of metadata.
LONGEST_KEY = 64
Short = Annotated[str, StringConstraints(max_length=512)]


def small(value: object) -> object:
    if sum(1 for _ in levels(value)) > MAX_DEPTH:
        raise PydanticCustomError("too_deep", "It is nested more than {most} levels deep", {"most": MAX_DEPTH})
    try:
        length = len(json.dumps(value, allow_nan=False))
    except ValueError:  # such as 1e999
        raise PydanticCustomError("not_finite", "It has a number that is too large") from None
    if length > MAX_SCHEMA:
        raise PydanticCustomError("too_long", "It is longer than {most} characters", {"most": MAX_SCHEMA})
    if why := unstorable(value):
        raise PydanticCustomError("unstorable", "It {why}", {"why": why})
    return value


def _short_keys(metadata: dict[str, str]) -> dict[str, str]:
    if any(len(key) > LONGEST_KEY for key in metadata):
        raise PydanticCustomError("metadata", "A key has more than {most} characters", {"most": LONGEST_KEY})
    if why := unstorable(metadata):
        raise PydanticCustomError("unstorable", "It {why}", {"why": why})
    return metadata


def _of_tokens(bias: dict[str, float]) -> dict[str, float]:
    if not all(key.isascii() and key.isdigit() and len(key) <= LONGEST_KEY for key in bias):
        raise PydanticCustomError("logit_bias", "Its keys are the ids of tokens, in digits")
    return bias


# Keys are not checked by the schema, as OpenAPI 3.0 has no words for it.
Metadata = Annotated[dict[str, Short], Field(max_length=16), BeforeValidator(few_keys), AfterValidator(_short_keys)]
LogitBias = Annotated[
    dict[str, Annotated[float, Field(ge=-100, le=100)]],
    Field(max_length=MAX_KEYS),
    BeforeValidator(few_keys),
    AfterValidator(_of_tokens),
]


JsonSchema = Annotated[dict[str, Any], BeforeValidator(small)]
