"""`serve-app caption`: images in, captions out, however many there are."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from serve_app.cli.errors import USAGE, CliError
from serve_app.cli.options import DEFAULT_URL, ApiKey, Url

if TYPE_CHECKING:
    from serve_app.cli.captioning.finish import TagRules

_OWN_OPTIONS = (
    "model",
    "style",
    "prompt",
    "length",
    "name",
    "language",
    "task",
    "format",
    "temperature",
    "max_tokens",
    "seed",
    "n",
)
_IN, _SHAPE, _TEXT, _RUN = "Which images", "What is asked", "What is written", "How it runs"


def caption(
    images: Annotated[
        list[str] | None, typer.Argument(metavar="IMAGE|FOLDER|PATTERN|URL|SHARD...", show_default=False)
    ] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    model: Annotated[
        str | None, typer.Option(help="Which model. Left out: the service's first one.", rich_help_panel=_SHAPE)
    ] = None,
    style: Annotated[
        str | None,
        typer.Option(
            help="short, detailed, tags or one of the model's own. Left out: short.", rich_help_panel=_SHAPE
        ),
    ] = None,
    length: Annotated[
        str | None, typer.Option(help="Words, or: very short, short, medium-length, long …", rich_help_panel=_SHAPE)
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(help="One of the model's extra options; repeatable.", rich_help_panel=_SHAPE),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="What a person in the image is called (JoyCaption).", rich_help_panel=_SHAPE)
    ] = None,
    language: Annotated[
        str | None, typer.Option(help="The caption's language, such as de.", rich_help_panel=_SHAPE)
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="A task of Florence-2, such as '<OD>'.", rich_help_panel=_SHAPE)
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(help="Your own words instead of a style; {name}, {folder}, {text}.", rich_help_panel=_SHAPE),
    ] = None,
    number: Annotated[
        int | None, typer.Option("--n", min=1, help="So many captions of each image.", rich_help_panel=_SHAPE)
    ] = None,
    rewrite: Annotated[
        str | None,
        typer.Option(
            help="A prompt for a second model, which writes the text anew; {caption} and the words of --prompt.",
            rich_help_panel=_SHAPE,
        ),
    ] = None,
    rewrite_model: Annotated[
        str | None,
        typer.Option(help="The second model. Left out: the first that chats.", rich_help_panel=_SHAPE),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="tags (a list of them too), json, or a file with a JSON schema to follow.",
            rich_help_panel=_SHAPE,
        ),
    ] = None,
    guard: Annotated[
        bool,
        typer.Option("--guard", help="Ask again for refusals, loops and other bad captions.", rich_help_panel=_SHAPE),
    ] = False,
    temperature: Annotated[
        float | None, typer.Option(min=0, max=2, help="0 is the likeliest caption.", rich_help_panel=_SHAPE)
    ] = None,
    field: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Any other field of the API, such as top_p=0.9; repeatable.",
            rich_help_panel=_SHAPE,
        ),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="The longest caption, in tokens.", rich_help_panel=_SHAPE)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="The same seed draws the same numbers.", rich_help_panel=_SHAPE)
    ] = None,
    prepend: Annotated[
        str, typer.Option(help="Written before each caption, such as 'sks dog, '.", rich_help_panel=_TEXT)
    ] = "",
    append: Annotated[str, typer.Option(help="Written after each caption.", rich_help_panel=_TEXT)] = "",
    replace: Annotated[
        list[str] | None,
        typer.Option(metavar="OLD=NEW", help="Replace a text in each caption; repeatable.", rich_help_panel=_TEXT),
    ] = None,
    one_line: Annotated[
        bool, typer.Option("--one-line", help="Line breaks become spaces.", rich_help_panel=_TEXT)
    ] = False,
    tag_separator: Annotated[
        str | None, typer.Option(help="Between tags; left out: ', '.", rich_help_panel=_TEXT)
    ] = None,
    underscores: Annotated[
        bool | None,
        typer.Option("--underscores/--spaces", help="long_hair or long hair in tags.", rich_help_panel=_TEXT),
    ] = None,
    escape_parentheses: Annotated[
        bool, typer.Option("--escape-parentheses", help=r"\( and \) in tags.", rich_help_panel=_TEXT)
    ] = False,
    drop_tag: Annotated[
        list[str] | None, typer.Option(help="A tag that is left out; repeatable.", rich_help_panel=_TEXT)
    ] = None,
    max_tags: Annotated[
        int | None, typer.Option(min=1, help="The first so many tags.", rich_help_panel=_TEXT)
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            help="FILE.jsonl, .csv or .parquet, txt (a.txt beside each a.jpg), FILE-%06d.tar (WebDataset), "
            "dataset:FOLDER (for load_dataset), or - (rows on stdout).",
        ),
    ] = None,
    texts_in: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="With --output txt: where the texts go, in the same folders below it.",
            rich_help_panel=_TEXT,
        ),
    ] = None,
    text_extension: Annotated[
        str, typer.Option(help="With --output txt: the texts' extension, such as .caption.", rich_help_panel=_TEXT)
    ] = ".txt",
    fill_empty: Annotated[
        bool,
        typer.Option(
            "--fill-empty", help="With --output txt: texts without a word count as missing.", rich_help_panel=_TEXT
        ),
    ] = False,
    existing: Annotated[
        Literal["append", "prepend"] | None,
        typer.Option(help="With --output txt: add captions to the texts that are there.", rich_help_panel=_TEXT),
    ] = None,
    context_extension: Annotated[
        str,
        typer.Option(help="Of the file beside an image that {text} stands for; or a column.", rich_help_panel=_SHAPE),
    ] = ".txt",
    dataset: Annotated[
        str | None,
        typer.Option(metavar="FOLDER|ID", help="A Hugging Face dataset, on disk or on the hub.", rich_help_panel=_IN),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="The dataset's split. Left out: all of them.", rich_help_panel=_IN)
    ] = None,
    image_column: Annotated[
        str | None, typer.Option(help="Where a dataset or Parquet file has its images.", rich_help_panel=_IN)
    ] = None,
    files_from: Annotated[
        str | None,
        typer.Option(
            "--files-from",
            help="A list of images and addresses: lines, .csv or .jsonl; - is stdin.",
            rich_help_panel=_IN,
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(help="Pass over names and paths of this pattern; repeatable.", rich_help_panel=_IN),
    ] = None,
    recursive: Annotated[bool, typer.Option(help="Enter folders inside folders.", rich_help_panel=_IN)] = True,
    shard_images: Annotated[
        int | None,
        typer.Option(
            min=1, help="The most images of a tar (10000) or of a dataset's file (2000).", rich_help_panel=_TEXT
        ),
    ] = None,
    dedupe: Annotated[
        bool, typer.Option("--dedupe", help="Caption equal files once, and write it for each.", rich_help_panel=_RUN)
    ] = False,
    near_duplicates: Annotated[
        int | None,
        typer.Option(
            metavar="BITS",
            min=0,
            max=16,
            help="And images whose perceptual hashes differ in so many of 64 bits.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1024,
            help="Images on their way at once. Left out: 16, then 64 where answers take less than 15 s.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    gallery: Annotated[
        bool, typer.Option("--gallery", help="End with a page of images and captions.", rich_help_panel=_RUN)
    ] = False,
    together: Annotated[
        int, typer.Option(min=1, max=1000, help="Small images in one request, at most.", rich_help_panel=_RUN)
    ] = 16,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after so many images.", rich_help_panel=_RUN)] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try the failed ones again.", rich_help_panel=_RUN)
    ] = False,
    only_failed: Annotated[
        bool, typer.Option("--only-failed", help="Try nothing but the failed ones again.", rich_help_panel=_RUN)
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Drop earlier captions; begin anew.", rich_help_panel=_RUN)
    ] = False,
    patience: Annotated[
        float,
        typer.Option(min=0, help="Seconds to wait for a service that has gone away.", rich_help_panel=_RUN),
    ] = 60.0,
) -> None:
    """Caption an image, a folder, files that match a pattern, or addresses.

    \b
    serve-app caption cat.jpg
    serve-app caption holiday/ --output captions.jsonl
    serve-app caption holiday/ --style tags --prepend 'sks dog, ' --output txt
    serve-app caption holiday/ --style descriptive --length 80 --option include_lighting
    find photos -name '*.webp' -print0 | serve-app caption --files-from - -o captions.csv

    With --output the run can be stopped at any moment: the same command
    continues where it stopped. Images that failed wait for --retry-failed.
    A row counts for what was asked when it was made: all of "What is asked"
    but the guard and the seed, and how it was written. Asking otherwise adds
    rows of its own. A caption that was cut short is asked again with another
    --max-tokens. With txt an image whose text file is there is done, and
    serve-app-captions.jsonl beside the images has the reasons of failures.

    Exit codes: 0 all captioned, 1 some failed, 2 the command can't work,
    3 no service, 130 stopped by Ctrl-C.
    """
    from serve_app.cli.captioning.finish import Finish
    from serve_app.cli.captioning.inputs.lists import FileList
    from serve_app.cli.captioning.inputs.tables import Columns
    from serve_app.cli.captioning.inputs.walk import Inputs
    from serve_app.cli.captioning.outputs.rows import CaptionSettings
    from serve_app.cli.captioning.outputs.target import Target
    from serve_app.cli.captioning.request import CaptionRequest, Rewrite
    from serve_app.cli.captioning.same import SameImages
    from serve_app.cli.captioning.session import Session

    if not images and files_from is None and dataset is None:
        raise CliError("Name an image, a folder, a pattern or an address, or --files-from a list of them", USAGE)
    if texts_in and (output != "txt" or files_from or dataset or not all(map(os.path.exists, images or []))):
        raise CliError("--texts-in goes with --output txt, and with images and folders that are named", USAGE)
    if overwrite and (retry_failed or only_failed):
        raise CliError("--overwrite begins anew, so there is nothing to retry: leave out one of the two", USAGE)
    if split and dataset is None:
        raise CliError("--split goes with --dataset: name a dataset on disk or on the hub", USAGE)
    if rewrite_model and rewrite is None:
        raise CliError("--rewrite-model goes with --rewrite PROMPT, such as 'In one sentence: {caption}'", USAGE)
    if rewrite is not None and ("{caption}" not in rewrite or (number or 1) > 1):
        raise CliError("--rewrite needs {caption} in its prompt, and one caption an image (no --n)", USAGE)
    target = Target(
        output, overwrite, retry_failed or only_failed, text_extension,
        fills_empty=fill_empty, adding=existing, texts_in=texts_in, shard_images=shard_images,
    )  # fmt: skip
    finish = Finish.of(
        replace or [], prepend=prepend, append=append, is_one_line=one_line,
        tags=_tag_rules(tag_separator, underscores, escape_parentheses, drop_tag or [], max_tags),
    )  # fmt: skip
    settings = CaptionSettings.of(
        model, style, prompt,
        length=_as_length(length), options=option or None, name=name, language=language, task=task, n=number,
        format=_as_format(form), temperature=temperature, finish=finish.detail, fields=_fields(field or []),
        rewrite=[rewrite, rewrite_model] if rewrite else None,
    )  # fmt: skip
    inputs = Inputs(
        images or [], FileList(files_from) if files_from else None, dataset, split,
        Columns(image_column, context_extension), exclude or [], recursive,
    )  # fmt: skip
    request = CaptionRequest(
        settings, max_tokens, seed, guard, finish,
        SameImages(near_duplicates) if dedupe or near_duplicates is not None else None,
        context_extension, Rewrite(rewrite, rewrite_model) if rewrite else None,
    )  # fmt: skip
    session = Session(
        url=url, api_key=api_key, inputs=inputs, request=request, target=target, concurrency=concurrency,
        limit=limit, patience_s=patience, together=together, is_retrying=retry_failed or only_failed,
        is_only_retrying=only_failed, page_of=target.written_to(images or []) if gallery else None,
    )  # fmt: skip
    if exit_code := session.run():
        raise typer.Exit(exit_code)


def _tag_rules(
    separator: str | None, underscores: bool | None, escapes_parentheses: bool, dropped: list[str], most: int | None
) -> "TagRules | None":
    """None where no option speaks of tags: a caption is a sentence then."""
    from serve_app.cli.captioning.finish import TagRules

    rules = TagRules(", " if separator is None else separator, underscores, escapes_parentheses, tuple(dropped), most)
    return None if separator is None and rules == TagRules() else rules


def _fields(texts: list[str]) -> dict[str, Any] | None:
    """The values of `NAME=VALUE`, as JSON where they are that and as texts otherwise. None where there are none."""
    fields: dict[str, Any] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name.isidentifier() or name in _OWN_OPTIONS:
            option = f": it is --{name.replace('_', '-')}" if name in _OWN_OPTIONS else ""
            raise CliError(f"--field '{text}': write NAME=VALUE, such as top_p=0.9{option}", USAGE)
        try:
            fields[name] = json.loads(value)
        except ValueError:
            fields[name] = value
    return fields or None


def _as_length(length: str | None) -> int | str | None:
    return int(length) if length and length.isascii() and length.isdigit() else length


def _as_format(form: str | None) -> Any:
    """A form's name, or the schema that a file holds."""
    if form in (None, "text", "tags", "json"):
        return form
    try:
        schema = json.loads(Path(str(form)).read_text())
    except (OSError, ValueError) as exc:
        raise CliError(f"--format {form}: write tags, json or the path of a JSON schema ({exc})", USAGE) from exc
    return {"type": "json", "schema": schema}
