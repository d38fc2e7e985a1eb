"""TGI's own OpenAPI page, as a judge of answers: `mistakes(value, "GenerateResponse")`."""

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

PAGE = Path(__file__).parent / "data" / "tgi" / "openapi.json.gz"


@cache
def _schemas() -> dict[str, Any]:
    page = json.loads(gzip.decompress(PAGE.read_bytes()))
    schemas: dict[str, Any] = _as_json_schema(page["components"]["schemas"])
    return schemas


def mistakes(value: Any, name: str) -> list[str]:
    """Every place where `value` isn't what the page says; a field that it doesn't have is one."""
    schema = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": _schemas()}}
    errors = Draft202012Validator(schema).iter_errors(value)
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in errors]


def _as_json_schema(schema: Any) -> Any:
    """OpenAPI 3.0 says `nullable` where JSON schema has a type; objects are closed."""
    if isinstance(schema, list):
        return [_as_json_schema(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    said = {name: _as_json_schema(below) for name, below in schema.items() if name != "example"}
    if isinstance(said.get("properties"), dict) and "type" in said:
        said["additionalProperties"] = False
    return {"anyOf": [said, {"type": "null"}]} if said.pop("nullable", None) is True else said


def properties(name: str) -> set[str]:
    """The fields that the page gives an object."""
    return set(_schemas()[name]["properties"])
