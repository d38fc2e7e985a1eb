"""docs/clients.md says what the marks of the tests say, and the marks say what can be said."""

import pytest

from tests.clients import FOLDER
from tests.clients.table import CLIENTS, FEATURES, PAGE, Mark, marks, page


def test_the_page_is_the_tables_own() -> None:
    assert PAGE.read_text() == page(), "run python -m tests.clients.table"


@pytest.mark.parametrize("mark", sorted(set(marks()), key=str), ids=lambda mark: f"{mark.client}: {mark.feature}")
def test_every_mark_names_a_client_and_a_feature_that_are_known(mark: Mark) -> None:
    assert mark.client in CLIENTS
    assert mark.feature in FEATURES
    assert mark.refused is None or mark.on is None


def test_the_clients_environment_is_pinned_and_without_torch() -> None:
    lines = [line for line in (FOLDER / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert all("==" in line for line in lines)
    assert not [line for line in lines if line.startswith(("torch", "nvidia"))]
