"""YAML that hides a mistake is refused, with the file, the line and the key."""

import pytest
import yaml

from serve_app.errors import ConfigError
from serve_app.yaml_text import parse_yaml


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: 1\nb: 2\na: 3", "nodes.yaml: line 1: 'a' is there 2 times: keep one"),
        ("- x: {a: 1}\n- x: {b: 1, b: 2, b: 3}", "nodes.yaml: line 2: 'b' is there 3 times: keep one"),
        ("a: [", "nodes.yaml isn't valid YAML: "),
        ("a: !!int x", "nodes.yaml isn't valid YAML: invalid literal for int()"),
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


def test_a_date_is_a_text_whatever_the_process_has_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-format-enforcer, which vLLM imports, changes PyYAML's own table."""
    text = "2026-11-30: 2026-99-01"
    assert parse_yaml(text, "nodes.yaml") == {"2026-11-30": "2026-99-01"}
    monkeypatch.delitem(yaml.SafeLoader.yaml_constructors, "tag:yaml.org,2002:timestamp")
    assert parse_yaml(text, "nodes.yaml") == {"2026-11-30": "2026-99-01"}
