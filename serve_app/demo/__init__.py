"""The embedded demo model: a tiny vision-language model that this project trains on pictures it draws itself.

`CHECKPOINT` is a Hugging Face folder like any other; nothing of this package is needed to load it. The rest
of the package draws the scenes, writes the answers, trains and evaluates.
"""

from pathlib import Path

CHECKPOINT = Path(__file__).parent / "checkpoint"

# The exact prompts that the service sends for its three caption styles; the model is trained on them.
STYLE_PROMPTS = {
    "short": "Write a short caption for this picture.",
    "detailed": "Describe this picture in detail.",
    "tags": "List tags for this picture, separated by commas.",
}
