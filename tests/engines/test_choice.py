"""The table of engines and the names that a config may use."""

import importlib.util
from typing import get_args

from serve_app.config.applications import ModelConfig
from serve_app.engines.choice import ENGINES


def test_every_name_in_the_config_has_a_row() -> None:
    names = get_args(ModelConfig.model_fields["engine"].annotation)
    assert set(names) == {"auto", *ENGINES}


def test_every_row_names_a_module_that_exists() -> None:
    for row in ENGINES.values():
        assert importlib.util.find_spec(row.path.partition(":")[0]) is not None
