"""Each row's checkpoint, built once."""

from pathlib import Path

import pytest

from tests.matrix.rows import ROWS, Row


class Checkpoints:
    """Builds a row's folder when it is first asked for."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def of(self, row: Row) -> Path:
        folder = self._root / row.name
        return folder if folder.exists() else row.build(folder)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("matrix"))


@pytest.fixture(params=ROWS, ids=lambda row: row.name)
def row(request: pytest.FixtureRequest) -> Row:
    chosen: Row = request.param
    return chosen
