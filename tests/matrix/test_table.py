"""docs/models.md says what the rows and the measurements say."""

from tests.matrix.outcomes import outcomes
from tests.matrix.rows import ROWS
from tests.matrix.table import PAGE, page


def test_the_page_is_the_tables_own() -> None:
    assert PAGE.read_text() == page(), "run python -m tests.matrix.table"


def test_every_row_was_measured_and_none_is_forgotten() -> None:
    assert set(outcomes()) == {row.name for row in ROWS}
