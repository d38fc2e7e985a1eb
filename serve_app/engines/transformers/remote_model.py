"""Remote code that is asked in a way of its own, in the dress of `generate`: what the engine needs of such a model.

Code from the hub that transformers doesn't have often brings no processor: the model itself turns a conversation
into its inputs. One class for each such way stands beside this file; `remote_models.py` finds a checkpoint's.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from transformers import AutoTokenizer

from serve_app.checkpoints.architectures import Architecture

Turn = dict[str, Any]
"""`role` (user or assistant, in turns, the user first) and `content`, a list of texts and `PIL.Image`s."""


@dataclass(frozen=True, slots=True)
class OwnPrompt:
    """One conversation as the model's own inputs. Only prompts with equal `batch_key`s run in one batch."""

    inputs: Any
    num_tokens: int
    batch_key: tuple[Any, ...] = ()


class RemoteModel(ABC):
    """Delegates everything to the remote model but `generate`.

    `architecture` says what prompts may hold. `placeholder` is the text that stands for an image in its prompts.
    """

    architecture: ClassVar[Architecture] = Architecture()
    placeholder: ClassVar[str | None] = None

    def __init__(self, model: Any, source: str, common: dict[str, Any]) -> None:
        """`common`: the arguments of every `from_pretrained`."""
        self._model = model
        self.tokenizer: Any = AutoTokenizer.from_pretrained(source, **common)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    @property
    def eos_ids(self) -> frozenset[int]:
        """The tokens that end its answers."""
        ids = self.generation_config.eos_token_id or self.tokenizer.eos_token_id
        return frozenset([ids] if isinstance(ids, int) else ids or [])

    @abstractmethod
    def own_prompt(self, turns: list[Turn]) -> OwnPrompt:
        """The conversation prepared, on the CPU. Raises `ValueError` in words for the client."""

    @abstractmethod
    def generate(self, own_prompts: list[Any], max_new_tokens: int, **controls: Any) -> None:
        """Answer a batch of `OwnPrompt.inputs`, token by token.

        The answers go to the logits processor and stopping criteria in `controls`; what comes back is unused.
        """
