"""Images in a Hugging Face dataset: a folder on disk, or an id where the hub is reachable."""

import os
import threading
from collections.abc import Iterator
from typing import Any

from serve_app.cli.captioning.inputs.image import FoundImage, Uncountable
from serve_app.cli.captioning.inputs.tables import Columns, image_of
from serve_app.cli.captioning.libraries import library
from serve_app.cli.errors import USAGE, CliError

_OPENING = threading.Lock()  # its progress bars can't be made by two threads at once: the walk's and the counter's


def images(name: str, split: str | None, columns: Columns, *, is_counting: bool = False) -> Iterator[FoundImage]:
    """The images of a dataset, a folder on disk or an id on the hub. Raises `CliError`; in counting `Uncountable`."""
    if is_counting and not os.path.isdir(name):
        raise Uncountable(name)  # to ask the hub twice
    datasets = library("datasets")
    datasets.disable_progress_bars()
    try:
        with _OPENING:
            splits = _splits(datasets, name, split)
        for split_name, rows in splits.items():
            yield from _of_split(datasets, name, split_name, rows, columns, is_counting)
    except (CliError, Uncountable):
        raise
    except Exception as exc:  # a boundary: each library has errors of its own
        raise CliError(f"--dataset {name} can't be read: {' '.join(str(exc).split())}", USAGE) from exc


def _num_rows(rows: Any, split: str) -> int:
    if hasattr(rows, "__len__"):
        return len(rows)
    if num_rows := getattr((rows.info.splits or {}).get(split), "num_examples", None):
        return int(num_rows)
    raise Uncountable(split)


def is_saved_dataset(folder: str) -> bool:
    """Whether `save_to_disk` wrote it."""
    return any(
        all(os.path.isfile(os.path.join(folder, name)) for name in names)
        for names in (("dataset_dict.json",), ("dataset_info.json", "state.json"))
    )


def _splits(datasets: Any, name: str, split: str | None) -> dict[str, Any]:
    if os.path.isdir(name) and is_saved_dataset(name):
        loaded = datasets.load_from_disk(name)
    else:
        loaded = datasets.load_dataset(name, streaming=True)
    splits = dict(loaded) if isinstance(loaded, dict) else {str(loaded.split or "train"): loaded}
    if split is None:
        return splits
    if split not in splits:
        raise CliError(f"--split {split}: the dataset has {', '.join(sorted(splits))}", USAGE)
    return {split: splits[split]}


def _of_split(
    datasets: Any, name: str, split: str, rows: Any, columns: Columns, is_counting: bool
) -> Iterator[FoundImage]:
    top = name if os.path.isdir(name) else f"hf://datasets/{name}"
    if is_counting:
        for index in range(_num_rows(rows, split)):
            yield FoundImage(f"{top}/{split}/{index:09}")
        return
    there = list(rows.column_names or next(iter(rows), {}))
    image, text = columns.image_of(name, there), columns.text_of(there)
    rows = rows.select_columns([image] if text is None else [image, text])
    if isinstance((rows.features or {}).get(image), datasets.Image):
        rows = rows.cast_column(image, datasets.Image(decode=False))
    for index, row in enumerate(rows):
        yield image_of(f"{top}/{split}/{index:09}", row[image], row.get(text))
