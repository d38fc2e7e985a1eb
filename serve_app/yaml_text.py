"""YAML text read strictly: a key that a mapping has twice is an error, where YAML keeps the last and says nothing."""

from typing import Any, ClassVar

import yaml
from yaml.constructor import SafeConstructor

from serve_app.errors import ConfigError

# PyYAML lets some of these through: `!!bool x`, `!!int x`
YAML_ERRORS = (yaml.YAMLError, ValueError, LookupError, AttributeError)


class _Constructor(SafeConstructor):
    """A date is a text, as in YAML 1.2, so a model may be called 2026-11-30.

    The table is this class's own. lm-format-enforcer, which vLLM imports, changes PyYAML's for its whole process.
    """

    yaml_constructors: ClassVar[dict[str | None, Any]] = {
        **SafeConstructor.yaml_constructors,
        "tag:yaml.org,2002:timestamp": SafeConstructor.construct_yaml_str,
    }


def parse_yaml(text: str, name: str) -> Any:
    """The values in `text`, which is also JSON. Raises `ConfigError` with the file's `name`, the line and the key."""
    try:
        root = yaml.compose(text, yaml.SafeLoader)
        keys = repeated_key(root)
        values = None if keys else values_of(root)
    except YAML_ERRORS as exc:
        raise ConfigError(f"{name} isn't valid YAML: {' '.join(str(exc).split())}") from exc
    if keys:
        line = keys[0].start_mark.line + 1
        raise ConfigError(f"{name}: line {line}: '{keys[0].value}' is there {len(keys)} times: keep one")
    return values


def values_of(root: yaml.Node | None) -> Any:
    """The values of a composed document; None where it is empty. Raises one of `YAML_ERRORS`."""
    return None if root is None else _Constructor().construct_document(root)


def repeated_key(root: yaml.Node | None) -> list[yaml.ScalarNode]:
    """A key that stands more than once in a mapping, each time that it does; empty where there is none."""
    nodes, seen = [root], set()
    while nodes:
        node = nodes.pop()
        if id(node) in seen or not isinstance(node, yaml.CollectionNode):
            continue
        seen.add(id(node))  # an alias leads to the same node again
        if isinstance(node, yaml.MappingNode):
            keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
            names = [key.value for key in keys]
            for name in names:
                if names.count(name) > 1:
                    return [key for key in keys if key.value == name]
            nodes += [value for _, value in reversed(node.value)]
        else:
            nodes += reversed(node.value)
    return []
