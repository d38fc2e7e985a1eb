"""The file of API keys: what is refused, where, without repeating it; and entries added to any text."""

import pytest

from serve_app.access.key_file import KeyEntry, entry_text, parse_keys, with_entry
from serve_app.errors import ConfigError

A, B = "a" * 64, "b" * 64
PLAIN = "sa-aPlainKeyThatSomebodyPutWhereItDoesNotBelong"
ALICE = KeyEntry(name="alice", sha256=A)
BOB = KeyEntry(name="bob", sha256=B, models=("m", "n/o"), requests_per_minute=60, priority=0, admin=True)


def entries(*lines: str) -> bytes:
    return "\n".join(["keys:", *lines]).encode()


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"- x", "line 1: the file is a mapping with a list `keys`"),
        (b"keys: 5", "line 1: keys: "),
        (entries("- 5"), "line 2: keys.0: "),
        (b"kyes: []", "line 1: unknown field 'kyes': did you mean 'keys'"),
        (entries(f"- {{sha256: {A}}}"), "line 2: keys.0.name: Field required"),
        (entries("- name: a"), "line 2: keys.0.sha256: Field required"),
        (entries(f"- {{name: 'a b', sha256: {A}}}"), "line 2: keys.0.name: "),
        (entries(f"- {{name: '', sha256: {A}}}"), "line 2: keys.0.name: "),
        (entries(f"- {{name: a, sha256: {A[1:]}}}"), "line 2: keys.0.sha256: a SHA-256 is 64 hex digits"),
        (entries(f"- {{name: a, sha256: {A[1:]}g}}"), "a SHA-256 is 64 hex digits"),
        (entries(f"- {{name: a, sha256: '{A[1:]}٣'}}"), "a SHA-256 is 64 hex digits"),
        (entries(f"- {{name: a, sha256: {PLAIN}}}"), "`serve-app key` makes a key and its entry"),
        (
            entries("- name: a", f"  key: {PLAIN}"),
            "line 3: keys.0: no key itself belongs in this file: put its sha256",
        ),
        (entries("- name: a", f"  {PLAIN}: x"), "line 3: keys.0: unknown field of a long name"),
        (entries("- name: a", "  priorty: 3"), "line 3: keys.0: unknown field 'priorty': did you mean 'priority'"),
        (entries("- name: a", f"  sha256: {A}", "  priority: 10"), "line 4: keys.0.priority: "),
        (entries("- name: a", f"  sha256: {A}", "  tokens_per_minute: 0"), "line 4: keys.0.tokens_per_minute: "),
        (
            entries("- name: a", f"  sha256: {A}", f"  images_per_minute: {PLAIN}"),
            "line 4: keys.0.images_per_minute: ",
        ),
        (entries("- name: a", f"  sha256: {A}", "  models: []"), "line 4: keys.0.models: "),
        (entries("- name: a", f"  sha256: {A}", "  models: m"), "line 4: keys.0.models: "),
        (entries("- name: a", f"  sha256: {A}", "  models:", "  - m", "  - '*'"), "line 6: keys.0.models.1: "),
        (entries("- name: a", f"  sha256: {A}", "  name: b"), "line 4: the field 'name' is there twice"),
        (b"keys: []\nkeys: []", "line 2: the field 'keys' is there twice"),
        (entries(f"- {{name: a, sha256: {A}}}", f"- {{name: a, sha256: {B}}}"), "line 3: the name 'a' is taken"),
        (
            entries(f"- {{name: a, sha256: {A}}}", f"- {{name: b, sha256: {A.upper()}}}"),
            "line 3: 'a' has the same key",
        ),
        (f"keys: [{PLAIN}".encode(), "this isn't valid YAML"),
        (f"keys: *{PLAIN}".encode(), "line 1, column 7: this isn't valid YAML"),
        (f"keys: !!{PLAIN} x".encode(), "line 1, column 7: this isn't valid YAML"),
        (f"keys: !!bool {PLAIN}".encode(), "this isn't valid YAML"),
        (b"keys: 2024-99-99", "line 1: keys: it is a list"),
        (b"keys: []\n---\nkeys: []", "this isn't valid YAML"),
        (b"keys: \0", "this isn't valid YAML"),
        (b"\xff", "this isn't valid YAML"),
        (b"[" * 1_000_000, "values are nested deeper than"),
        (b"- " * 1_000_000, "values are nested deeper than"),
        (b"keys: " + b"{a: " * 1_000_000, "values are nested deeper than"),
        (f"keys: !!timestamp {PLAIN}".encode(), "line 1: keys: it is a list"),
        (b"keys: &a [*a]", "line 1: keys.0: "),
    ],
)
def test_mistakes_are_named_with_their_line_and_never_repeated(data: bytes, sentence: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_keys(data)
    assert sentence in str(raised.value)
    assert PLAIN not in str(raised.value)


@pytest.mark.parametrize(
    "data", [b"", b"\n# nothing\n", b"---\n", b"keys:", b"keys: []", b"{}", b"\xef\xbb\xbfkeys: []"]
)
def test_no_entries(data: bytes) -> None:
    assert parse_keys(data) == ()


HEAD = f"- name: alice\n  sha256: {A}\n"
WRITTEN = {
    "nothing": "",
    "a comment": "# our keys\n",
    "a document's start": "---\n",
    "no list": "keys:\n",
    "an empty list": "keys: []\n",
    "a list": f"keys:\n{HEAD}",
    "no line end": f"keys:\n{HEAD}".rstrip(),
    "a comment behind": f"keys:\n{HEAD}# the end\n",
    "an indented list": f"# ours\nkeys:\n    - name: alice  # she\n      sha256: {A}\n\n\n",
    "brackets": f"keys: [{{name: alice, sha256: {A}}}]\n",
    "brackets on lines": f"keys: [\n  {{name: alice, sha256: {A}}},  # she\n]\n# the end\n",
    "braces": f"{{keys: [{{name: alice, sha256: {A}}}]}}",
    "other line ends": f"keys:\r\n- name: alice\r\n  sha256: {A}\r\n",
}


@pytest.mark.parametrize("text", WRITTEN.values(), ids=WRITTEN)
def test_an_entry_is_added_and_the_rest_stays(text: str) -> None:
    before = parse_keys(text.encode())
    added = with_entry(text.encode(), BOB)
    assert parse_keys(added.encode()) == (*before, BOB)
    for comment in ("# our keys", "# she", "# the end"):
        assert (comment in added) == (comment in text)
    twice = with_entry(added.encode(), KeyEntry(name="carol", sha256="c" * 64))
    assert [entry.name for entry in parse_keys(twice.encode())][-2:] == ["bob", "carol"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (f"keys:\n- name: bob\n  sha256: {A}\n", "the name 'bob' is taken: choose another"),
        (f"keys:\n- name: x\n  sha256: {B}\n", "write it so, or add the entry by hand"),
        ("keys: null\n", "write it so, or add the entry by hand"),
        ("{}\n", "write it so, or add the entry by hand"),
        ("keys: []\n...\n", ""),
        ("keys: [", "this isn't valid YAML"),
    ],
)
def test_what_cannot_be_added_to_is_said(text: str, sentence: str) -> None:
    if not sentence:
        assert parse_keys(with_entry(text.encode(), BOB).encode()) == (BOB,)
        return
    with pytest.raises(ConfigError, match=sentence):
        with_entry(text.encode(), BOB)


def test_an_entry_says_only_what_is_not_the_default() -> None:
    assert entry_text(ALICE) == HEAD
    assert entry_text(BOB).splitlines() == [
        "- name: bob", f"  sha256: {B}", "  models:", "  - m", "  - n/o", "  requests_per_minute: 60",
        "  priority: 0", "  admin: true",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["no", "123", "1e5", "on", "2024-01-01"])
def test_names_that_yaml_would_take_for_something_else(name: str) -> None:
    entry = KeyEntry(name=name, sha256="1" * 64)
    for text in ("", "keys: []"):
        assert parse_keys(with_entry(text.encode(), entry).encode()) == (entry,)
