"""API keys: who is let in, what every other header gets, how the file is followed, and that no key is ever told."""

import hashlib
import logging
import os
import pickle
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from serve_app.access.key_file import KeyEntry, parse_keys
from serve_app.access.keys import Key, Keyring, new_key, sha256_of
from serve_app.config.applications import MetricsConfig
from serve_app.config.http import HttpConfig, KeysConfig
from serve_app.errors import ConfigError, InvalidKey
from tests.scripted_clock import Clock

KEY, OTHER, THIRD = (f"sa-{letters * 14}x" for letters in ("k7Q", "p_2", "-Zz"))
RIGHT = f"Bearer {KEY}"
VARIABLE = "KEYS_OF_THE_TEST"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "keys.yaml"
    path.touch(mode=0o600)
    write(path, {"alice": KEY, "bob": OTHER})
    return path


def text_of(owners: dict[str, str]) -> str:
    entries = (f"- {{name: {name}, sha256: {sha256_of(key)}}}\n" for name, key in owners.items())
    return "keys:\n" + "".join(entries) if owners else "keys: []\n"


def write(path: Path, owners: dict[str, str]) -> None:
    path.write_text(text_of(owners))


def keyring(path: Path, clock: Clock) -> Keyring:
    """It reads where it is asked, so that what a test changes counts at once."""
    return Keyring(KeysConfig(file=str(path), environment=VARIABLE), clock, run=lambda work: work())


def name_of(keys: Keyring, key: str) -> str | None:
    """Whose key it is; None where it is refused."""
    try:
        found = keys.key_of(f"Bearer {key}")
    except InvalidKey:
        return None
    assert found is not None
    return found.name


def test_a_key_is_known_with_all_that_its_entry_says(path: Path, clock: Clock) -> None:
    path.write_text(f"""
keys:
- name: alice
  sha256: {sha256_of(KEY).upper()}
  models: [a, b]
  requests_per_minute: 60
  tokens_per_minute: 100000
  images_per_minute: 300
  priority: 9
  admin: true
- {{name: bob, sha256: {sha256_of(OTHER)}}}
""")
    keys = keyring(path, clock)
    alice, bob = keys.key_of(RIGHT), keys.key_of(f"bEARER {OTHER}")
    assert alice == Key(
        name="alice", id=hashlib.sha256(KEY.encode()).hexdigest()[:12], models=frozenset({"a", "b"}), is_admin=True,
        priority=9, requests_per_minute=60, tokens_per_minute=100_000, images_per_minute=300,
    )  # fmt: skip
    assert bob == Key(name="bob", id=sha256_of(OTHER)[:12], priority=5)
    assert [alice.may_use(model) for model in ("a", "b", "c", "")] == [True, True, False, False]
    assert bob is not None
    assert bob.may_use("anything")
    assert not keys.is_open


HOSTILE = {
    "none": None,
    "empty": "",
    "a space": " ",
    "the scheme alone": "Bearer",
    "no key": "Bearer ",
    "two spaces": f"Bearer  {KEY}",
    "a tab": f"Bearer\t{KEY}",
    "no space": f"Bearer{KEY}",
    "a colon": f"Bearer: {KEY}",
    "the key alone": KEY,
    "Basic": f"Basic {KEY}",
    "Basic with a user": "Basic YWxpY2U6cGFzc3dvcmQ=",
    "Token": f"Token {KEY}",
    "almost the scheme": f"Bearers {KEY}",
    "a space ahead": f" {RIGHT}",
    "a space behind": f"{RIGHT} ",
    "a line end behind": f"{RIGHT}\n",
    "a carriage return": f"{RIGHT}\r\nX-Admin: 1",
    "a NUL behind": f"{RIGHT}\x00",
    "a NUL inside": f"Bearer {KEY[:5]}\x00{KEY[5:]}",
    "an invisible space": f"Bearer {KEY}\u200b",
    "a no-break space": f"Bearer\xa0{KEY}",
    "Latin-1": f"Bearer {KEY}é",
    "other letters": "Bearer ключ-от-сервиса",
    "wide letters": "Bearer " + "".join(chr(ord(c) + 0xFEE0) for c in KEY),
    "half a character": f"Bearer {KEY}\ud800",
    "a list": f"{RIGHT}, Bearer {OTHER}",
    "a list without spaces": f"{RIGHT},{OTHER}",
    "twice": f"{RIGHT} {RIGHT}",
    "quoted": f'Bearer "{KEY}"',
    "one letter short": RIGHT[:-1],
    "one letter more": f"{RIGHT}x",
    "one letter else": f"{RIGHT[:-1]}y",
    "other case": f"Bearer {KEY.swapcase()}",
    "the hash": f"Bearer {sha256_of(KEY)}",
    "the hash's beginning": f"Bearer {sha256_of(KEY)[:12]}",
    "the name": "Bearer alice",
    "None": "Bearer None",
    "a pattern": "Bearer .*",
    "YAML": "Bearer {name: alice, admin: true}",
    "percent signs": "Bearer " + KEY.replace("-", "%2D"),
    "as long as it may be": "Bearer " + "a" * 505,
    "too long": "Bearer " + "a" * 506,
    "very long": "Bearer " + "a" * 10_000_000,
    "very long spaces": "Bearer" + " " * 1_000_000 + KEY,
}


@pytest.mark.parametrize("header", HOSTILE.values(), ids=HOSTILE)
def test_every_other_header_is_refused(
    path: Path, clock: Clock, caplog: pytest.LogCaptureFixture, header: str | None
) -> None:
    keys = keyring(path, clock)
    with caplog.at_level(logging.DEBUG), pytest.raises(InvalidKey) as raised:
        keys.key_of(header)
    told = "".join(traceback.format_exception(raised.value)) + repr(raised.value) + caplog.text
    assert len(raised.value.message) < 150
    assert KEY not in told
    assert "aaaaaaaa" not in told


def test_a_refusal_says_what_to_send(path: Path, clock: Clock) -> None:
    keys = keyring(path, clock)
    for header in (None, "Basic x", "Bearer " + "a" * 600):
        with pytest.raises(InvalidKey, match="send Authorization: Bearer YOUR_KEY"):
            keys.key_of(header)
    with pytest.raises(InvalidKey, match="isn't known here"):
        keys.key_of(f"Bearer {THIRD}")


@pytest.mark.parametrize("key", ["0", "4999", "9999", "unknown"])
def test_a_key_is_found_among_ten_thousand_without_looking_at_the_others(path: Path, clock: Clock, key: str) -> None:
    write(path, {f"n{number}": str(number) for number in range(10_000)})
    keys = keyring(path, clock)
    calls: list[object] = []
    sys.setprofile(lambda frame, event, argument: calls.append(argument) if event.endswith("call") else None)
    try:
        found = name_of(keys, key)
    finally:
        sys.setprofile(None)
    assert found == (None if key == "unknown" else f"n{key}")
    assert len(calls) < 40


def test_a_request_does_not_wait_for_the_file_to_be_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading takes as long as it likes, in one thread at a time; until then the keys from before are good."""
    clock = Clock()
    keys = Keyring(KeysConfig(file=str(path), environment=VARIABLE), clock)
    begun, may_end, num_readings = threading.Event(), threading.Event(), 0

    def slowly(data: bytes) -> tuple[KeyEntry, ...]:
        nonlocal num_readings
        num_readings += 1
        begun.set()
        assert may_end.wait(60)
        return parse_keys(data)

    monkeypatch.setattr("serve_app.access.keys.parse_keys", slowly)
    write(path, {"carol": THIRD})
    for _ in range(5):
        clock.now_s += 3
        assert [name_of(keys, key) for key in (KEY, THIRD)] == ["alice", None]
        assert begun.wait(60)
    may_end.set()
    deadline = time.monotonic() + 60
    while name_of(keys, THIRD) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert (name_of(keys, KEY), num_readings) == (None, 1)


def test_a_long_header_is_not_hashed(path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = keyring(path, clock)
    monkeypatch.setattr("serve_app.access.keys.hashlib", None)
    with pytest.raises(InvalidKey, match="more than 512 characters"):
        keys.key_of("Bearer " + "a" * 600)


def test_without_keys_everything_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SERVE_APP_API_KEYS", raising=False)
    keys = Keyring(HttpConfig().keys)
    assert keys.is_open
    assert [keys.key_of(header) for header in (None, "", RIGHT, "Basic x")] == [None] * 4


@pytest.mark.parametrize("value", [f"{KEY},{OTHER}", f" {KEY} \n,,\t{OTHER}\n", f"{KEY} {KEY} {OTHER}"])
def test_the_variable_holds_keys_without_limits(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("SERVE_APP_API_KEYS", value)
    keys = Keyring(MetricsConfig().keys)
    assert keys.key_of(RIGHT) == Key(name="env-1", id=sha256_of(KEY)[:12], is_admin=True)
    assert (name_of(keys, OTHER), name_of(keys, THIRD), keys.is_open) == ("env-2", None, False)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("", "is set and holds no key"),
        (" ,\n", "is set and holds no key"),
        (f"{KEY} ключ", "key 2"),
        ("a" * 600, "key 1"),
    ],
)
def test_a_variable_that_cannot_work_is_a_mistake(monkeypatch: pytest.MonkeyPatch, value: str, sentence: str) -> None:
    monkeypatch.setenv(VARIABLE, value)
    with pytest.raises(ConfigError, match=f"{VARIABLE}.*{sentence}") as raised:
        Keyring(KeysConfig(environment=VARIABLE))
    assert KEY not in str(raised.value)
    assert "aaaa" not in str(raised.value)


def test_file_and_variable_together(path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, THIRD)
    keys = keyring(path, clock)
    assert [name_of(keys, key) for key in (KEY, OTHER, THIRD)] == ["alice", "bob", "env-1"]
    monkeypatch.setenv(VARIABLE, OTHER)
    with pytest.raises(ConfigError, match=f"keys.yaml: 'bob' has the name or the key of one in {VARIABLE}"):
        keyring(path, clock)


def test_a_changed_file_is_read_again_after_a_while(path: Path, clock: Clock) -> None:
    keys = keyring(path, clock)
    write(path, {"carol": THIRD})
    clock.now_s += 1.9
    assert [name_of(keys, key) for key in (KEY, THIRD)] == ["alice", None]
    clock.now_s += 0.2
    assert [name_of(keys, key) for key in (KEY, THIRD)] == [None, "carol"]


def test_a_file_put_in_place_by_renaming(path: Path, clock: Clock) -> None:
    """Of the same size and with the same time, as `cp -p` leaves it."""
    keys = keyring(path, clock)
    before = path.stat()
    new = path.with_suffix(".new")
    write(new, {"carol": KEY, "bob": OTHER})
    os.utime(new, ns=(before.st_atime_ns, before.st_mtime_ns))
    new.replace(path)
    assert path.stat().st_size == before.st_size
    clock.now_s += 3
    assert name_of(keys, KEY) == "carol"


def test_a_link_that_leads_elsewhere(tmp_path: Path, path: Path, clock: Clock) -> None:
    """How Kubernetes changes a mounted Secret."""
    link, other = tmp_path / "link", tmp_path / "other.yaml"
    link.symlink_to(path)
    write(other, {"carol": KEY})
    keys = keyring(link, clock)
    assert name_of(keys, KEY) == "alice"
    (tmp_path / "draft").symlink_to(other)
    (tmp_path / "draft").replace(link)
    clock.now_s += 3
    assert name_of(keys, KEY) == "carol"


BROKEN = {
    "not YAML": (b"keys: [", "this isn't valid YAML"),
    "torn": (text_of({"alice": KEY})[:-20].encode(), "keys.yaml: line 3, column 1: this isn't valid YAML"),
    "a wrong hash": (b"keys:\n- name: x\n  sha256: sa-plain\n", "line 3: keys.0.sha256: a SHA-256 is 64 hex digits"),
    "an unknown field": (b"keys:\n- nmae: x\n", "line 2: keys.0: unknown field 'nmae': did you mean 'name'"),
    "a plain key": (b"keys:\n- name: x\n  key: sa-plain\n", "line 3: keys.0: no key itself belongs in this file"),
    "no text": (b"\xff\xfe\x00", "this isn't valid YAML"),
}


@pytest.mark.parametrize(("data", "sentence"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_changes_nothing_and_is_told_once(
    path: Path, clock: Clock, caplog: pytest.LogCaptureFixture, data: bytes, sentence: str
) -> None:
    keys = keyring(path, clock)
    path.write_bytes(data)
    for _ in range(5):
        clock.now_s += 3
        assert [name_of(keys, key) for key in (KEY, OTHER, THIRD)] == ["alice", "bob", None]
    (line,) = (record.getMessage() for record in caplog.records if record.levelno == logging.ERROR)
    assert sentence in line
    assert "the keys from before stay good" in line
    assert "sa-plain" not in caplog.text
    path.write_bytes(data + b"\n#")
    clock.now_s += 3
    name_of(keys, KEY)
    assert sum(record.levelno == logging.ERROR for record in caplog.records) == 2  # another change
    write(path, {"carol": THIRD})
    clock.now_s += 3
    assert [name_of(keys, key) for key in (KEY, THIRD)] == [None, "carol"]


def test_a_vanished_file_changes_nothing_and_is_told_once(
    path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    keys = keyring(path, clock)
    for num_vanished in (1, 2):
        path.rename(path.with_suffix(".away"))
        for _ in range(3):
            clock.now_s += 3
            assert name_of(keys, KEY) == "alice"
        errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
        assert len(errors) == num_vanished
        assert "keys.yaml can't be read (No such file or directory): the keys from before stay good" in errors[-1]
        path.with_suffix(".away").rename(path)
        clock.now_s += 3
        assert name_of(keys, KEY) == "alice"
    write(path, {"carol": KEY})
    clock.now_s += 3
    assert name_of(keys, KEY) == "carol"


def test_what_cannot_be_read_for_a_moment_is_read_later(
    path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """The change was seen, and the reading failed: it must not count as read."""
    keys = keyring(path, clock)
    path.unlink()
    path.mkdir()
    for _ in range(3):
        clock.now_s += 3
        assert name_of(keys, KEY) == "alice"
    assert sum("Is a directory" in record.getMessage() for record in caplog.records) == 1
    path.rmdir()
    write(path, {"carol": KEY})
    clock.now_s += 3
    assert name_of(keys, KEY) == "carol"


@pytest.mark.parametrize("text", ["", "# none\n", "keys:\n", "keys: []\n", "{}"])
def test_a_file_without_keys_closes_everything(
    path: Path, clock: Clock, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    keys = keyring(path, clock)
    path.write_text(text)
    clock.now_s += 3
    for empty in (keys, keyring(path, clock)):
        assert not empty.is_open
        assert [name_of(empty, key) for key in (KEY, OTHER)] == [None, None]
        with pytest.raises(InvalidKey):
            empty.key_of(None)
    assert "holds no key, so every request is refused" in caplog.text


@pytest.mark.parametrize(("data", "sentence"), BROKEN.values(), ids=BROKEN)
def test_the_first_reading_must_succeed(path: Path, clock: Clock, data: bytes, sentence: str) -> None:
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"keys\.yaml: ") as raised:
        keyring(path, clock)
    assert sentence in str(raised.value)
    assert "sa-plain" not in "".join(traceback.format_exception(raised.value))


def test_a_missing_file_is_said_with_the_fix(tmp_path: Path, clock: Clock) -> None:
    with pytest.raises(ConfigError, match=r"none.yaml can't be read \(No such file.*`serve-app key NAME --file"):
        keyring(tmp_path / "none.yaml", clock)


def test_the_file_is_looked_at_no_more_often_than_said(
    path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = keyring(path, clock)
    looks: list[Path] = []
    monkeypatch.setattr(keys, "_look", looks.append)
    for _ in range(100):  # ten seconds
        clock.now_s += 0.1
        name_of(keys, KEY)
    assert len(looks) in (4, 5)


def test_a_file_that_others_may_read_is_told_once(path: Path, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    keys = keyring(path, clock)
    assert not caplog.records
    path.chmod(0o640)
    for owner in ("carol", "dave"):
        write(path, {owner: KEY})
        clock.now_s += 3
        assert name_of(keys, KEY) == owner
    assert caplog.text.count("others than its owner may use") == 1


def test_no_key_is_ever_told(
    path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(VARIABLE, THIRD)
    with caplog.at_level(logging.DEBUG):
        keys = keyring(path, clock)
        found = [keys.key_of(f"Bearer {key}") for key in (KEY, OTHER, THIRD)]
        write(path, {"alice": OTHER, "bob": KEY})
        clock.now_s += 3
        name_of(keys, f"{KEY}wrong")
        keys.key_of(RIGHT)
    told = f"{found!r} {found!s} {keys!r} {keys!s} {vars(keys)!r} {caplog.text}"
    for key in (KEY, OTHER, THIRD):
        assert key not in told
        assert key.encode() not in pickle.dumps(found)


def test_new_keys_are_long_and_different() -> None:
    made = {new_key() for _ in range(100)}
    assert len(made) == 100
    assert all(key.startswith("sa-") and len(key) == 46 and f"Bearer {key}".isascii() for key in made)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"fil": "x"}, "unknown field 'fil': did you mean 'file'"),
        ({"file": ""}, "at least 1 character"),
        ({"reload_s": -1}, "greater than or equal to 0"),
        ({"reload_s": float("inf")}, "finite"),
        ({"environment": "A B"}, "match pattern"),
        ({"environment": ""}, "match pattern"),
    ],
)
def test_settings_that_cannot_work_are_refused(values: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        KeysConfig.model_validate(values)


@pytest.mark.parametrize("module", ["keys", "key_file", "rates"])
def test_neither_ray_nor_http_is_imported(module: str) -> None:
    code = (
        "import sys\n"
        "for name in ('ray', 'torch', 'vllm', 'starlette', 'aiohttp', 'httpx'): sys.modules[name] = None\n"
        f"import serve_app.access.{module}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_where_no_thread_can_be_started_the_keys_stay_and_are_looked_at_later(
    path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    has_threads = False

    def run(work: Callable[[], None]) -> None:
        if not has_threads:
            raise RuntimeError("can't start new thread")
        work()

    keys = Keyring(KeysConfig(file=str(path), environment=VARIABLE), clock, run)
    write(path, {"carol": THIRD})
    clock.now_s += 60.0
    assert name_of(keys, KEY) == "alice"
    assert "can't start new thread" in caplog.text
    has_threads = True
    clock.now_s += 60.0
    assert name_of(keys, THIRD) == "carol"
