"""The embedded demo model: a tiny vision-language model, trained on scenes that `demo_model/` draws.

`CHECKPOINT` is a Hugging Face folder like any other: no code of ours is needed to load it.
"""

from pathlib import Path

CHECKPOINT = Path(__file__).parent / "checkpoint"
