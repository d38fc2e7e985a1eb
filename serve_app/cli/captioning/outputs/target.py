"""Where captions go, by what `--output` and its options say."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from serve_app.cli.captioning.names import LEDGER_NAME
from serve_app.cli.captioning.outputs.dataset import DATASET, DatasetFolder
from serve_app.cli.captioning.outputs.ledger import Ledger
from serve_app.cli.captioning.outputs.output import Output
from serve_app.cli.captioning.outputs.printed import Printed
from serve_app.cli.captioning.outputs.rows import CaptionSettings
from serve_app.cli.captioning.outputs.shards import Shards
from serve_app.cli.captioning.outputs.table import Table
from serve_app.cli.captioning.outputs.text_files import Adding, TextFiles
from serve_app.cli.errors import USAGE, CliError

Kind = Literal["printed", "stream", "txt", "rows", "table", "tars", "dataset"]
_BY_EXTENSION: dict[str, Kind] = {".jsonl": "rows", ".csv": "rows", ".parquet": "table", ".tar": "tars"}


@dataclass(frozen=True, slots=True)
class Target:
    """The options of one run's output. Raises `CliError` on creation where they don't go together."""

    output: str | None = None
    is_overwriting: bool = False
    is_retrying: bool = False
    text_extension: str = ".txt"
    fills_empty: bool = False
    adding: Adding | None = None
    texts_in: str | None = None
    shard_images: int | None = None

    def __post_init__(self) -> None:
        if self.adding and (self.is_overwriting or self.kind != "txt"):
            raise CliError("--existing adds to text files: use it with --output txt, without --overwrite", USAGE)
        if not self.text_extension.startswith(".") or "/" in self.text_extension:
            raise CliError(f"--text-extension {self.text_extension}: write it with its dot, such as .caption", USAGE)
        if self.shard_images is not None and self.kind not in ("tars", "dataset"):
            raise CliError(f"--shard-images goes with --output FILE-%06d.tar or {DATASET}FOLDER", USAGE)

    @property
    def kind(self) -> Kind:
        """`printed`: captions on stdout; `stream`: rows on stdout. Raises `CliError` for what is none."""
        output = self.output
        if output is None or output == "-":
            return "printed" if output is None else "stream"
        if output == "txt" or (output.startswith(DATASET) and output != DATASET):
            return "txt" if output == "txt" else "dataset"
        kind = _BY_EXTENSION.get(Path(output).suffix.lower())
        if kind is None:
            raise CliError(
                f"--output {output}: name a file that ends in .jsonl, .csv, .parquet or .tar, "
                f"or write txt, {DATASET}FOLDER or -", USAGE,
            )  # fmt: skip
        if Path(output).is_dir():
            raise CliError(f"--output {output} is a folder: name a file in it, like {output}/captions.jsonl", USAGE)
        return kind

    @property
    def is_kept(self) -> bool:
        return self.kind not in ("printed", "stream")

    def written_to(self, images: Sequence[str]) -> str:
        """The output as `serve-app gallery` is told of it. Raises `CliError` where that can't be one thing."""
        if self.output is None or self.output == "-":
            raise CliError("--gallery shows an output: name one with --output", USAGE)
        if self.kind != "txt":
            return self.output
        folder = self.texts_in or (images[0] if len(images) == 1 else "")
        if not os.path.isdir(folder) and not self.texts_in:
            raise CliError("--gallery with --output txt needs one folder of images, or --texts-in", USAGE)
        return folder

    @property
    def how_to_continue(self) -> str:
        if not self.is_kept:
            return "nothing was kept: use --output FILE.jsonl"
        if self.is_overwriting:
            anew = "with --overwrite it begins anew"
            return anew if self.kind == "txt" else f"run it without --overwrite to continue; {anew}"
        return "run the same command again to continue"

    @property
    def where_failures_stand(self) -> str:
        if self.kind == "txt":
            return f" (reasons in {LEDGER_NAME} beside the images)"
        if self.kind in ("tars", "dataset"):
            return " (reasons in the file of rows beside the shards)"
        return f" (reasons in {self.output})" if self.is_kept else ""

    def open(
        self, settings: CaptionSettings, max_tokens: int | None, images: Sequence[str], is_single: bool,
        say: Callable[[str], None],
    ) -> Output:  # fmt: skip
        """The output, locked until it is closed. `images` are the command's, of which one may be all there is."""
        output = self.output or ""
        match self.kind:
            case "printed":
                return Printed("caption" if is_single else "lines", say)
            case "stream":
                return Printed("rows", say)
            case "txt":
                return TextFiles(
                    settings, max_tokens, is_overwriting=self.is_overwriting, is_retrying=self.is_retrying,
                    extension=self.text_extension, fills_empty=self.fills_empty, adding=self.adding,
                    into=(_top(images), self.texts_in) if self.texts_in else None,
                )  # fmt: skip
            case "table":
                return Table(output, settings, max_tokens, self.is_overwriting)
            case "tars" | "dataset":
                return self._shards(output, settings, max_tokens)
        ledger = Ledger(output, settings, max_tokens, self.is_overwriting)
        if ledger.num_bad_records:
            say(f"{output}: {ledger.num_bad_records} rows can't be read and don't count as done")
        return ledger

    def _shards(self, output: str, settings: CaptionSettings, max_tokens: int | None) -> Output:
        kind, path = (Shards, output) if self.kind == "tars" else (DatasetFolder, output.removeprefix(DATASET))
        if self.shard_images is None:
            return kind(path, settings, max_tokens, self.is_overwriting)
        return kind(path, settings, max_tokens, self.is_overwriting, self.shard_images)


def _top(images: Sequence[str]) -> str:
    """The real path of the folder that has all images below it."""
    folders = [os.path.realpath(path if os.path.isdir(path) else os.path.dirname(path)) for path in images]
    return os.path.commonpath(folders)
