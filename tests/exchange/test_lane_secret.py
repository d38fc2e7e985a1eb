"""The secret by which our processes know HAProxy: made of what they share, and never that itself."""

from pathlib import Path

import pytest

from serve_app.exchange.lane_secret import SECRET_VARIABLE, is_secret, lane_secret


@pytest.fixture(autouse=True)
def _nothing_is_shared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (SECRET_VARIABLE, "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_without_anything_shared_there_is_none_and_nothing_matches_it() -> None:
    assert lane_secret() is None
    assert not is_secret("", None)
    assert not is_secret("None", None)


def test_it_is_made_of_the_variable_or_of_rays_token_wherever_that_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("of the file\n")
    made = [lane_secret()]
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / ".ray" / "auth_token"))
    assert lane_secret() == made[0]
    for name in ("RAY_AUTH_TOKEN", SECRET_VARIABLE):
        monkeypatch.setenv(name, f"of {name}")
        made.append(lane_secret())
    assert len(set(made)) == 3
    for secret in made:
        assert secret is not None
        assert len(secret) == 64
        assert is_secret(secret, secret)
        assert not is_secret("of the file", secret)


@pytest.mark.parametrize("text", ["", "é", "x" * 100_000])
def test_what_a_stranger_sends_is_not_it(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECRET_VARIABLE, "shared")
    assert not is_secret(text, lane_secret())
