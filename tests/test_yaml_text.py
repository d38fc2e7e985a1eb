"""YAML that hides a mistake is refused, with the file, the line and the key."""

import pytest

from serve_app.errors import ConfigError
from serve_app.yaml_text import parse_yaml


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: 1\nb: 2\na: 3", "nodes.yaml: line 1: 'a' is there 2 times: keep one"),
        ("- x: {a: 1}\n- x: {b: 1, b: 2, b: 3}", "nodes.yaml: line 2: 'b' is there 3 times: keep one"),
        ("a: [", "nodes.yaml isn't valid YAML: "),
        ("a: 2026-99-01", "nodes.yaml isn't valid YAML: month must be in 1..12"),
    ],
)
def test_a_mistake_is_named(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_yaml(text, "nodes.yaml")
    assert str(refused.value).startswith(sentence)


def test_merges_and_aliases_repeat_nothing() -> None:
    values = parse_yaml("a: &a {x: 1}\nb: {<<: *a, x: 2}\nc: [*a, *a]", "nodes.yaml")
    assert values == {"a": {"x": 1}, "b": {"x": 2}, "c": [{"x": 1}, {"x": 1}]}
    assert parse_yaml("&a [*a]", "nodes.yaml")
    assert parse_yaml("", "nodes.yaml") is None
