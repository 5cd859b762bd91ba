"""Whether an answer is one that the OpenAPI document told of: its status, its type, and every member of its body."""

import re
from typing import Any

import httpx
from jsonschema import Draft202012Validator

GENERAL = {"not_found", "method_not_allowed"}
"""Codes of requests that meet no route, so that there is nothing to describe."""


def check(document: dict[str, Any], response: httpx.Response) -> None:
    """Fails with what was not described."""
    operation = _operation(document, response.request.method, response.request.url.path)
    if operation is None:
        assert response.json()["code"] in GENERAL | {"token_missing", "token_invalid", "token_expired"}
        return
    told = operation["responses"].get(str(response.status_code))
    assert told, f"{response.request.method} {response.request.url} answered {response.status_code}: not described"
    media_type = response.headers["content-type"].partition(";")[0]
    assert media_type in told["content"], f"{media_type} is not described for {response.status_code}"
    if media_type.endswith("json"):
        schema = told["content"][media_type]["schema"] | {"components": document["components"]}
        Draft202012Validator(schema).validate(response.json())
        _refuse_undescribed_members(response.json(), schema, document)
    for name in ("location", "retry-after", "www-authenticate", "preference-applied"):
        described = {header.lower() for header in told.get("headers", {})}
        assert name not in response.headers or name in described, f"the header {name} is not described"


def _refuse_undescribed_members(body: Any, schema: dict[str, Any], document: dict[str, Any]) -> None:
    """A schema without ``additionalProperties`` lets anything pass: for what is answered that is not the truth."""
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    if isinstance(body, dict) and "properties" in schema:
        assert body.keys() <= schema["properties"].keys(), f"not described: {body.keys() - schema['properties'].keys()}"
        for name, value in body.items():
            _refuse_undescribed_members(value, schema["properties"][name], document)
    if isinstance(body, list) and "items" in schema:
        for item in body:
            _refuse_undescribed_members(item, schema["items"], document)


def _operation(document: dict[str, Any], method: str, path: str) -> dict[str, Any] | None:
    for template, operations in document["paths"].items():
        pattern = re.sub(r"\\\{.*?\\\}", ".+" if template.startswith("/admin/") else "[^/]+", re.escape(template))
        if re.fullmatch(pattern, path) and method.lower() in operations:
            found: dict[str, Any] = operations[method.lower()]
            return found
    return None
