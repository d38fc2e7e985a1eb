"""PaliGemma's task syntax, as ai.google.dev/gemma/docs/paligemma/prompt-system-instructions has it.

`caption` is for every checkpoint; `describe` and `cap` were taught to the pretrained ones. `{code}` is a language.
Its processor adds the line end.
"""

from serve_app.families.family import CaptionFamily, Style

PALIGEMMA = CaptionFamily(
    "paligemma", (Style("short", "caption {code}"), Style("detailed", "describe {code}"), Style("cap", "cap {code}"))
)
