"""Loads a model's checkpoint with transformers.

Owns what is specific to Hugging Face folders; knows nothing of requests or batches.
"""

import copy
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from serve_app.checkpoints.architectures import Architecture, architecture_of
from serve_app.checkpoints.image_edges import image_edge
from serve_app.checkpoints.load_errors import explain, require_all_weights
from serve_app.checkpoints.load_progress import Report, to_nobody
from serve_app.checkpoints.source import resolve
from serve_app.config.applications import Family, ModelConfig
from serve_app.engines.text.break_reader import read_breaks
from serve_app.engines.text.client_text import TextGuard, text_guard
from serve_app.engines.text.token_bytes import TokenBytes
from serve_app.engines.transformers.answer_text import Decode
from serve_app.engines.transformers.processors import image_mark, image_tokens, load_processor
from serve_app.engines.transformers.quantization import check_quantization, quantize
from serve_app.engines.transformers.remote import remote_class
from serve_app.engines.transformers.remote.model import RemoteModel
from serve_app.errors import ConfigError
from serve_app.families import family_of_config
from serve_app.messages import ImageEdge

# What `generate` needs to know of the vocabulary. All else in a checkpoint's generation config would sample
# (temperature, beams), look at padding (repetition penalties) or at the batch's longest answer (a forced end), so
# that companions changed an answer.
_KEPT_GENERATION_FIELDS = (
    "eos_token_id", "bos_token_id", "pad_token_id", "decoder_start_token_id",
    "forced_bos_token_id", "suppress_tokens", "begin_suppress_tokens",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded model with what prepares its prompts.

    `processor` is the tokenizer for models that read text only and for those that prepare prompts themselves.
    """

    model: Any
    processor: Any
    tokenizer: Any
    decoding_tokenizer: Any
    architecture: Architecture
    family: Family
    takes_images: bool
    image_edge: ImageEdge | None
    image_mark: str  # what stands for an image in a raw prompt
    texts: TextGuard
    is_encoder_decoder: bool
    context_length: int | None
    eos_ids: frozenset[int]
    decode_answer: Decode
    token_bytes: TokenBytes
    special_ids: frozenset[int]  # that texts leave out, the ends of answers among them
    pad_id: int
    sampling: dict[str, float]  # of its own generation config, by the names of `Sampling`

    @property
    def has_template(self) -> bool:
        return bool(getattr(self.processor, "chat_template", None))

    def decode_token(self, token: int) -> str:
        return str(self.decoding_tokenizer.decode([token], clean_up_tokenization_spaces=False))


def load_checkpoint(config: ModelConfig, report: Report = to_nobody) -> Checkpoint:
    """Fetch, read, check and place the model; takes seconds to minutes. Raises `ConfigError`."""
    # The hub's conversion robot would fetch weights from an unmerged pull request.
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    torch.set_num_threads(max(1, int(config.num_cpus)))
    check_quantization(config)
    source = str(resolve(config, report))
    report("loading weights")
    try:
        return _load(source, config)
    except ConfigError:
        raise
    except Exception as exc:  # an engine boundary: a model's loading code raises anything at all
        raise ConfigError(explain(exc, config)) from exc


def _load(source: str, config: ModelConfig) -> Checkpoint:
    hub_options = {"revision": config.revision or "main", "trust_remote_code": config.trust_remote_code}
    _hold_to_fraction(config)
    architecture = AutoConfig.from_pretrained(source, **hub_options)
    takes_images, auto_model = _auto_model(architecture)
    model, loading_info = auto_model.from_pretrained(
        source,
        config=architecture,
        **hub_options,
        output_loading_info=True,
        dtype="auto" if config.dtype == "auto" else getattr(torch, config.dtype),
        **({"use_safetensors": True} if config.weights_format == "safetensors" else {}),
        **config.engine_args,
    )
    require_all_weights(loading_info["missing_keys"], config)
    model = model.eval()
    if config.quantization:
        quantize(model, config)
    if "device_map" not in config.engine_args:
        model.to("cuda" if config.num_gpus > 0 and torch.cuda.is_available() else "cpu")
    if remote := remote_class(architecture):
        model = remote(model, source, hub_options)
        processor = model.tokenizer
    elif takes_images:
        processor = load_processor(source, architecture, hub_options)
    else:
        processor = AutoTokenizer.from_pretrained(source, **hub_options)
    return _checkpoint(model, processor, takes_images, config, Path(source))


def _hold_to_fraction(config: ModelConfig) -> None:
    """A fraction of a GPU is that fraction of its memory: beyond it torch refuses, and no neighbour starves."""
    if config.shares_gpu and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(config.num_gpus)


def _auto_model(architecture: Any) -> tuple[bool, Any]:
    """Whether it takes images, and transformers' class that knows which class the model is of."""
    remote = getattr(architecture, "auto_map", None) or {}
    if "AutoModelForVision2Seq" in remote:  # its name in transformers 4
        remote.setdefault("AutoModelForImageTextToText", remote["AutoModelForVision2Seq"])
    if type(architecture) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING or "AutoModelForImageTextToText" in remote:
        return True, AutoModelForImageTextToText
    if remote_class(architecture):
        return True, AutoModelForCausalLM if "AutoModelForCausalLM" in remote else AutoModel
    return False, AutoModelForCausalLM


def _checkpoint(model: Any, processor: Any, takes_images: bool, config: ModelConfig, folder: Path) -> Checkpoint:
    tokenizer = getattr(processor, "tokenizer", processor)
    architecture = model.architecture if isinstance(model, RemoteModel) else architecture_of(model.config.model_type)
    text_config = model.config.get_text_config(decoder=True)
    eos_ids = _eos_ids(model, tokenizer, text_config)
    pad_id = next((i for i in (tokenizer.pad_token_id, *sorted(eos_ids)) if i is not None), 0)
    sampling = _sampling(model.generation_config)
    for part in model.modules():  # BLIP, BLIP-2 and Kosmos-2 generate with their language model's own
        if isinstance(getattr(part, "generation_config", None), transformers.GenerationConfig):
            part.generation_config = _generation_config(part.generation_config, eos_ids, pad_id)
    decoding_tokenizer = copy.deepcopy(tokenizer)  # two threads can't share one: "Already borrowed"
    limits = [getattr(text_config, "max_position_embeddings", None), config.max_context_tokens]
    return Checkpoint(
        model=model,
        processor=processor,
        tokenizer=tokenizer,
        decoding_tokenizer=decoding_tokenizer,
        architecture=architecture,
        family=family_of_config(model.config),
        takes_images=takes_images,
        image_edge=None if isinstance(model, RemoteModel) else image_edge(folder),
        image_mark=image_mark(processor) if takes_images and not isinstance(model, RemoteModel) else "",
        texts=_guarded(model, processor, takes_images),
        is_encoder_decoder=bool(model.config.is_encoder_decoder or text_config.is_encoder_decoder),
        context_length=min((n for n in limits if n), default=None),
        eos_ids=eos_ids,
        decode_answer=answer_decoder(decoding_tokenizer, architecture),
        token_bytes=TokenBytes(tokenizer),
        special_ids=eos_ids | frozenset(tokenizer.all_special_ids),
        pad_id=pad_id,
        sampling=sampling,
    )


def answer_decoder(tokenizer: Any, architecture: Architecture) -> Decode:
    """From token ids to an answer's text: without special tokens, except those that say places."""
    decode = partial(tokenizer.decode, clean_up_tokenization_spaces=False)
    if not architecture.says_places:
        return partial(decode, skip_special_tokens=True)
    silent = {getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "pad", "unk", "mask", "image")}
    return lambda tokens: str(decode([token for token in tokens if token not in silent]))


def _guarded(model: Any, processor: Any, takes_images: bool) -> TextGuard:
    """What keeps clients' texts texts. Changes every tokenizer of the processor to respect it."""
    tokenizer = getattr(processor, "tokenizer", processor)
    read_breaks(tokenizer)
    if qformer_tokenizer := getattr(processor, "qformer_tokenizer", None):
        read_breaks(qformer_tokenizer)
    if isinstance(model, RemoteModel):
        return text_guard(tokenizer, [model.placeholder or ""], has_turns=True)
    placeholders = image_tokens(processor) if takes_images else ()
    return text_guard(tokenizer, placeholders, has_turns=bool(getattr(processor, "chat_template", None)))


def _sampling(config: Any) -> dict[str, float]:
    """The repetition penalty holds even where the checkpoint is greedy."""
    temperature = 1.0 if config.do_sample else 0.0
    sampling = {"temperature": temperature, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    names = sampling if config.do_sample else ["repetition_penalty"]
    return sampling | {name: value for name in names if (value := getattr(config, name)) is not None}


def _eos_ids(model: Any, tokenizer: Any, text_config: Any) -> frozenset[int]:
    if isinstance(model, RemoteModel):
        return model.eos_ids
    if model.config.model_type == "blip":  # its `generate` ends at the separator, whatever the checkpoint says
        return frozenset([text_config.sep_token_id])
    for ids in (model.generation_config.eos_token_id, tokenizer.eos_token_id):
        if ids is not None:
            return frozenset([ids] if isinstance(ids, int) else ids)
    return frozenset()


def _generation_config(config: Any, eos_ids: frozenset[int], pad_id: int) -> Any:
    kept = {name: getattr(config, name, None) for name in _KEPT_GENERATION_FIELDS}
    return transformers.GenerationConfig(
        **{**kept, "eos_token_id": sorted(eos_ids) or None, "pad_token_id": pad_id}, do_sample=False, num_beams=1
    )
