"""What the engine needs of a model whose own code turns conversations into inputs, instead of a processor."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from transformers import AutoTokenizer

from serve_app.checkpoints.architectures import Architecture

Turn = dict[str, Any]
"""`role` (user and assistant in turn, the user first) and `content`, a list of texts and `PIL.Image`s."""


@dataclass(frozen=True, slots=True)
class OwnPrompt:
    """One conversation as the model's own inputs. Only prompts with equal `batch_key`s run in one batch."""

    inputs: Any
    num_tokens: int
    batch_key: tuple[Any, ...] = ()


class RemoteModel(ABC):
    """Wraps the checkpoint's model and delegates all but `generate` to it.

    `architecture` says what prompts may hold. `placeholder` is the text that stands for an image in its prompts.
    """

    architecture: ClassVar[Architecture] = Architecture()
    placeholder: ClassVar[str | None] = None

    def __init__(self, model: Any, source: str, hub_options: dict[str, Any]) -> None:
        """`hub_options`: the arguments of every `from_pretrained`."""
        self._model = model
        self.tokenizer: Any = AutoTokenizer.from_pretrained(source, **hub_options)

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

        The answers go to the logits processor and stopping criteria in `controls`. The returned value is unused.
        """


def text_of(turn: Turn) -> str:
    return "\n".join(part for part in turn["content"] if isinstance(part, str))


def images_of(turns: list[Turn]) -> list[Any]:
    return [part for turn in turns for part in turn["content"] if not isinstance(part, str)]
