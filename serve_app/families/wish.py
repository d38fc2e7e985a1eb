"""From a client's wish to the words that a model is sent, or to the reason why its family can't grant it.

Knows no family by name and no HTTP. An error names the field, and the nearest value that the family has.
"""

import re
from dataclasses import dataclass

from serve_app.errors import InvalidRequest
from serve_app.families.family import LENGTHS, NAME_OPTION, CaptionFamily, Style, Task, slug
from serve_app.families.languages import ENGLISH, LANGUAGES, Language, language_called
from serve_app.strict import nearest_hint

ANY_LENGTH = "any"
_REGION = re.compile(r"(<loc_\d{1,3}>){4}")


@dataclass(frozen=True, slots=True)
class Wish:
    """How the client wants images captioned. `length` is a number of words, or one of `LENGTHS`.

    `prompt` is the client's own words, or with a `task` what that needs.
    """

    style: str | None = None
    length: int | str | None = None
    options: tuple[str, ...] = ()
    name: str | None = None
    language: str | None = None
    task: str | None = None
    prompt: str | None = None


@dataclass(frozen=True, slots=True)
class Words:
    """The exact prompt, and the system message before it.

    `language` is the caption's. It and `lists_tags` are None for a client's own prompt, which may ask for anything.
    """

    prompt: str
    system: str | None
    task: Task | None = None
    language: Language | None = None
    lists_tags: bool | None = None


def worded(family: CaptionFamily, wish: Wish) -> Words:
    """Raises `InvalidRequest` for what this family doesn't have, and for wishes that contradict each other."""
    language = _language(family, wish.language)
    if wish.task is not None:
        return _worded_task(family, wish)
    if wish.prompt is not None:
        _refuse_beside(wish, "prompt", ("style", "length", "options", "name"))
        prompt = wish.prompt + _in_language(family, language)
        task = next((task for task in family.tasks if prompt.startswith(task.token)), None)
        return Words(prompt, family.system, task, language)
    style = _style(family, wish.style or "short")
    prompt = _at_length(family, style, wish.length).replace("{code}", (language or ENGLISH).code)
    prompt = " ".join([prompt, *_options(family, wish)])
    prompt += "" if "{code}" in style.prompt else _in_language(family, language)
    return Words(prompt, family.system, language=language or ENGLISH, lists_tags=style.lists_tags)


def _worded_task(family: CaptionFamily, wish: Wish) -> Words:
    if not family.tasks:
        raise InvalidRequest(
            f"task: models of the family '{family.name}' have none, only Florence-2 has: send a style or a prompt",
            "task",
        )
    _refuse_beside(wish, "task", ("style", "length", "options", "name", "language"))
    tasks = {task.name: task for task in family.tasks}
    name = slug(wish.task or "")
    if name not in tasks:
        raise InvalidRequest(f"task '{wish.task}' is unknown{nearest_hint(name, tasks)}", "task")
    task = tasks[name]
    if task.needs == "nothing" and wish.prompt is not None:
        raise InvalidRequest(f"prompt: the task '{task.name}' takes none: leave it out", "prompt")
    if task.needs == "text" and wish.prompt is None:
        raise InvalidRequest(f"prompt: the task '{task.name}' needs the words that it looks for: send them", "prompt")
    if task.needs == "region" and not _REGION.fullmatch(wish.prompt or ""):
        raise InvalidRequest(
            f"prompt: the task '{task.name}' needs a region: send left, top, right and bottom in thousandths, as "
            "<loc_52><loc_332><loc_932><loc_774>", "prompt",
        )  # fmt: skip
    return Words(task.token + (wish.prompt or ""), family.system, task, lists_tags=False)


def _refuse_beside(wish: Wish, field: str, others: tuple[str, ...]) -> None:
    for other in others:
        if getattr(wish, other):
            raise InvalidRequest(f"{other}: there is a {field} as well, which says it all: leave out one", other)


def _style(family: CaptionFamily, style_name: str) -> Style:
    styles = {style.name: style for style in family.styles}
    if slug(style_name) not in styles:
        raise InvalidRequest(
            f"style '{style_name}' is unknown for models of the family '{family.name}'"
            f"{nearest_hint(slug(style_name), styles)}",
            "style",
        )
    return styles[slug(style_name)]


def _at_length(family: CaptionFamily, style: Style, length: int | str | None) -> str:
    if length is None or length == ANY_LENGTH:
        return style.prompt
    if style.in_words is None or style.at_length is None:
        able = [style.name for style in family.styles if style.takes_lengths]
        what = f"send a style that does: {', '.join(able)}" if able else f"models of the family '{family.name}' don't"
        raise InvalidRequest(f"length: the style '{style.name}' takes none: {what}", "length")
    if isinstance(length, int):
        return style.in_words.replace("{word_count}", str(length))
    words = {slug(word): word for word in LENGTHS}
    if slug(length) not in words:
        hint = nearest_hint(length, [*LENGTHS, ANY_LENGTH])
        raise InvalidRequest(f"length '{length}' is neither a number of words nor known{hint}", "length")
    return style.at_length.replace("{length}", words[slug(length)])


def _options(family: CaptionFamily, wish: Wish) -> list[str]:
    """The sentences, in the client's order. A name adds the sentence that it stands in."""
    if wish.options and not family.options:
        raise InvalidRequest(f"options: models of the family '{family.name}' have none: leave them out", "options")
    if wish.name is not None and NAME_OPTION not in family.options:
        raise InvalidRequest(f"name: models of the family '{family.name}' can't be told one: leave it out", "name")
    names = {text: name for name, text in family.options.items()}
    chosen = []
    for index, option in enumerate(wish.options):
        name = names.get(option.strip(), slug(option))
        if name not in family.options:
            hint = nearest_hint(name, family.options)
            raise InvalidRequest(f"options[{index}]: '{option}' is unknown{hint}", f"options[{index}]")
        chosen.append(name)
    if wish.name is not None and NAME_OPTION not in chosen:
        chosen.insert(0, NAME_OPTION)
    if NAME_OPTION in chosen and wish.name is None:
        raise InvalidRequest(f"name: the option '{NAME_OPTION}' needs it: send the name to use", "name")
    return [family.options[name].replace("{name}", wish.name or "") for name in dict.fromkeys(chosen)]


def _language(family: CaptionFamily, language_name: str | None) -> Language | None:
    if language_name is None:
        return None
    language = language_called(language_name)
    if language is None:
        names = [name for each in LANGUAGES for name in (each.code, each.name)]
        raise InvalidRequest(f"language '{language_name}' is unknown{nearest_hint(language_name, names)}", "language")
    if language != ENGLISH and not family.speaks_languages:
        raise InvalidRequest(
            f"language: models of the family '{family.name}' write English only: leave it out", "language"
        )
    return language


def _in_language(family: CaptionFamily, language: Language | None) -> str:
    """The addition to a prompt. Models write English without one."""
    if language is None or language == ENGLISH:
        return ""
    if family.in_language is None:
        raise InvalidRequest("language: there is a prompt of your own: say the language in it", "language")
    return family.in_language.replace("{language}", language.name)
