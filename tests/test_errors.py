"""Errors: each its own code, each survives a process boundary, each in the docs."""

import pickle
from pathlib import Path

import pytest

from serve_app import errors
from serve_app.errors import ServeAppError, concrete_errors

ROOT = Path(__file__).parent.parent


def test_every_code_is_its_own() -> None:
    codes = [error.code for error in concrete_errors()]
    assert len(codes) == len(set(codes)) > 10


@pytest.mark.parametrize("error", concrete_errors(), ids=lambda error: error.code)
def test_every_error_pickles_and_is_documented(error: type[ServeAppError]) -> None:
    copy = pickle.loads(pickle.dumps(error("message", "param", 1.5)))
    assert type(copy) is error
    assert (copy.message, copy.param, copy.retry_after_s) == ("message", "param", 1.5)
    assert 400 <= error.status < 600
    assert f"`{error.code}`" in (ROOT / "docs" / "api.md").read_text()
    row = f"{error.__name__} "
    assert any(row in line and str(error.status) in line and error.code in line
               for line in (errors.__doc__ or "").splitlines())  # fmt: skip
