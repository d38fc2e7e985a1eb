"""Kubernetes' structural schemas as JSON schemas that refuse what an API server would drop or refuse.

https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/
"""

import gzip
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend

CRD = Path(__file__).parent / "data" / "kuberay" / "rayservices-crd.yaml.gz"
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # a megabyte takes the slow one half a minute


@cache
def ray_service_schema() -> dict[str, Any]:
    """KubeRay's schema of `ray.io/v1` RayServices; a field it doesn't know is an error."""
    versions = yaml.load(gzip.decompress(CRD.read_bytes()), Loader=_Loader)["spec"]["versions"]
    (schema,) = (v["schema"]["openAPIV3Schema"] for v in versions if v["name"] == "v1")
    closed: dict[str, Any] = _closed(schema)
    return closed


def part(schema: dict[str, Any], *path: str) -> dict[str, Any]:
    """The schema of a field below `schema`; `[]` steps into a list."""
    for step in path:
        schema = schema["items"] if step == "[]" else schema["properties"][step]
    return schema


def mistakes(value: Any, schema: dict[str, Any]) -> list[str]:
    """Every place where `value` isn't what the schema says, as «path: what»."""
    errors: Iterator[Any] = _Validator(schema).iter_errors(value)
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in errors]


def _closed(schema: Any) -> Any:
    """An object with named fields takes no others, unless the schema says that it keeps them."""
    if not isinstance(schema, dict):
        return schema
    closed = dict(schema)
    if "properties" in closed:
        closed["properties"] = {name: _closed(below) for name, below in closed["properties"].items()}
        if not closed.get("x-kubernetes-preserve-unknown-fields") and "additionalProperties" not in closed:
            closed["additionalProperties"] = False
    for key in ("items", "additionalProperties"):
        if key in closed:
            closed[key] = _closed(closed[key])
    return closed


def _keys_are_unique(_: Any, kind: str, value: Any, schema: dict[str, Any]) -> Iterator[ValidationError]:
    """`x-kubernetes-list-type`: in a set no element twice, in a map no key twice."""
    if not isinstance(value, list) or kind not in ("set", "map"):
        return
    keys = schema.get("x-kubernetes-list-map-keys", [])
    seen = [[item.get(key) for key in keys] if kind == "map" and isinstance(item, dict) else item for item in value]
    for index, key in enumerate(seen):
        if key in seen[:index]:
            yield ValidationError(f"{key} stands in the list twice")


_Validator: Any = extend(Draft202012Validator, {"x-kubernetes-list-type": _keys_are_unique})
