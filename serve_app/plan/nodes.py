"""The nodes to plan for, as a user writes them: `4xCPU=16,GPU=2,gpu_memory_gib=80`, or a YAML or JSON file."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from serve_app.errors import ConfigError
from serve_app.placement.packing import Node
from serve_app.yaml_text import parse_yaml

HOW = (
    "write such as --nodes 4xCPU=16,GPU=2,gpu_memory_gib=80,memory_gib=64, or a YAML file with a list of such: "
    "- {count: 4, CPU: 16, GPU: 2}"
)
MAX_NODES = 1000
_OWN_KEYS = ("count", "name", "gpu_memory_gib", "memory_gib")


def read_nodes(specs: list[str], gpu_memory_gib: float | None) -> list[Node]:
    """Every node of every spec, each with a name of its own. Raises `ConfigError` naming the spec and the fix."""
    kinds = [kind for spec in specs for kind in (_read_file(spec) if _is_file(spec) else [_parse(spec)])]
    nodes = [node for kind in kinds for node in _nodes(kind)]
    if len(nodes) > MAX_NODES:
        raise ConfigError(f"--nodes: {len(nodes)} nodes are more than plan can search: give at most {MAX_NODES}")
    return with_gpu_memory(_with_names_of_their_own(nodes), gpu_memory_gib)


def with_gpu_memory(nodes: list[Node], gpu_memory_gib: float | None) -> list[Node]:
    """The nodes with this much memory on each GPU, where they don't say so themselves."""
    return [replace(node, gpu_memory_gib=node.gpu_memory_gib or gpu_memory_gib) for node in nodes]


def _is_file(spec: str) -> bool:
    return spec.endswith((".yaml", ".yml", ".json")) or "=" not in spec


def _read_file(path: str) -> list[dict[str, Any]]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"--nodes {path}: neither nodes nor a file that can be read: {HOW}") from exc
    kinds = parse_yaml(text, f"--nodes {path}")
    if not isinstance(kinds, list) or not kinds or not all(isinstance(kind, dict) for kind in kinds):
        raise ConfigError(f"--nodes {path} is no list of nodes: {HOW}")
    return [_checked({str(key): value for key, value in kind.items()}, path) for kind in kinds]


def _parse(spec: str) -> dict[str, Any]:
    head, times, tail = spec.partition("x")
    is_counted = bool(times) and head.isdigit()
    kind: dict[str, Any] = {"count": int(head) if is_counted else 1}
    for pair in (tail if is_counted else spec).split(","):
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not key or not equals:
            raise ConfigError(f"--nodes {spec}: '{pair}' is no RESOURCE=AMOUNT: {HOW}")
        kind[key] = value
    return _checked(kind, spec)


def _checked(kind: dict[str, Any], spec: str) -> dict[str, Any]:
    checked: dict[str, Any] = {"name": str(kind.get("name", "node"))}
    for key, value in kind.items():
        if key == "name":
            continue
        try:
            checked[key] = float(value)
        except (TypeError, ValueError) as exc:
            raise ConfigError(f"--nodes {spec}: {key} is '{value}' and must be a number: {HOW}") from exc
        if not 0 <= checked[key] < 1e9:
            raise ConfigError(f"--nodes {spec}: {key} is {value} and must be 0 or more")
    whole = [key for key in ("count", "GPU") if checked.get(key, 0.0) != int(checked.get(key, 0.0))]
    if whole:
        raise ConfigError(f"--nodes {spec}: {whole[0]} is {kind[whole[0]]} and must be a whole number")
    if not 1 <= checked.get("count", 1.0) <= MAX_NODES:
        raise ConfigError(f"--nodes {spec}: the number of nodes must be 1 to {MAX_NODES}")
    return checked


def _nodes(kind: dict[str, Any]) -> list[Node]:
    resources = {key: value for key, value in kind.items() if key not in _OWN_KEYS}
    node = Node(kind["name"], resources, resources, kind.get("gpu_memory_gib"), kind.get("memory_gib"))
    return [node] * int(kind.get("count", 1))


def _with_names_of_their_own(nodes: list[Node]) -> list[Node]:
    """Numbered in order where several have one name."""
    names = [node.name for node in nodes]
    seen: Counter[str] = Counter()
    numbered = []
    for node in nodes:
        seen[node.name] += 1
        is_alone = names.count(node.name) == 1
        numbered.append(node if is_alone else replace(node, name=f"{node.name}-{seen[node.name]}"))
    return numbered
