"""The promised models, one row each: the tests run over this table, and docs/models.md is written from it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from serve_app.config.applications import Family
from serve_app.messages import Task
from tests import tiny_models
from tests.matrix import captioners, chatters, patchers, remote_code, texts

Vllm = Literal["yes", "no", "needs torchvision"]
TINY = "random tiny checkpoint"
LOADER = "loader tested"
BOTH: tuple[Task, ...] = ("chat", "caption")


@dataclass(frozen=True)
class Row:
    """One promised model. `build` writes a checkpoint of `architecture` into a folder.

    `image_limit` None is no limit but the context, 0 is text only. `vllm`: whether vLLM serves this architecture,
    and whether only beside torchvision; `vllm_dtype`: what its CPU build runs it in; `vllm_differs`: why its tokens
    there are others than transformers'. `has_videos`: its processor wants a video processor, and that torchvision,
    which the engine does without. `needs_code`: its folder carries code that must be trusted.
    """

    name: str
    model: str
    architecture: str
    build: Callable[[Path], Path]
    family: Family = "generic"
    tasks: tuple[Task, ...] = BOTH
    image_limit: int | None = None
    needs_image: bool = False
    vllm: Vllm = "no"
    vllm_dtype: Literal["float32", "bfloat16"] = "float32"
    vllm_differs: str = ""
    has_videos: bool = False
    needs_code: bool = False
    note: str = TINY

    @property
    def takes_images(self) -> bool:
        return self.image_limit != 0

    @property
    def engines(self) -> tuple[str, ...]:
        return ("transformers",) if self.vllm == "no" else ("transformers", "vllm")


def _captioner(
    name: str,
    model: str,
    architecture: str,
    build: Callable[[Path], Path],
    family: Family,
    vllm: Vllm = "no",
) -> Row:
    return Row(name, model, architecture, build, family, image_limit=1, needs_image=True, vllm=vllm)


def _text(name: str, model: str, architecture: str, build: Callable[[Path], Path]) -> Row:
    return Row(name, model, architecture, build, tasks=("chat",), image_limit=0, vllm="yes")


def _chatter(
    name: str,
    model: str,
    architecture: str,
    build: Callable[[Path], Path],
    family: Family = "generic",
    vllm: Vllm = "needs torchvision",
    has_videos: bool = False,
) -> Row:
    return Row(name, model, architecture, build, family, vllm=vllm, has_videos=has_videos)


_BLIP2 = "Blip2ForConditionalGeneration"
_INSTRUCTBLIP = "InstructBlipForConditionalGeneration"
_LLAVA = "LlavaForConditionalGeneration"

ROWS: tuple[Row, ...] = (
    _captioner("blip", "BLIP", "BlipForConditionalGeneration", captioners.build_blip, "blip"),
    _captioner("blip2-opt", "BLIP-2 (OPT)", _BLIP2, captioners.build_blip2_opt, "blip2", "yes"),
    _captioner("blip2-t5", "BLIP-2 (T5)", _BLIP2, captioners.build_blip2_t5, "blip2"),
    _captioner(
        "instructblip-t5", "InstructBLIP (T5)", _INSTRUCTBLIP, captioners.build_instructblip_t5, "instructblip"
    ),
    _captioner(
        "instructblip-vicuna",
        "InstructBLIP (Vicuna)",
        _INSTRUCTBLIP,
        captioners.build_instructblip_vicuna,
        "instructblip",
    ),
    Row(
        "minigpt-4",
        "MiniGPT-4, converted",
        _BLIP2,
        captioners.build_minigpt4,
        "blip2",
        image_limit=1,
        needs_image=True,
        note=LOADER,
    ),
    _chatter("llava", "LLaVA 1.5", _LLAVA, tiny_models.build_llava, "llava"),
    _chatter("joycaption", "JoyCaption", _LLAVA, chatters.build_joycaption, "joycaption"),
    _chatter("llava-next", "LLaVA-NeXT", "LlavaNextForConditionalGeneration", chatters.build_llava_next, "llava"),
    _chatter("llava-interleave", "LLaVA-interleave (Qwen)", _LLAVA, chatters.build_llava_interleave, "llava"),
    _chatter("idefics2", "Idefics2", "Idefics2ForConditionalGeneration", chatters.build_idefics2, vllm="no"),
    _chatter("idefics3", "Idefics3", "Idefics3ForConditionalGeneration", tiny_models.build_idefics3, vllm="yes"),
    _chatter("smolvlm", "SmolVLM", "SmolVLMForConditionalGeneration", chatters.build_smolvlm, has_videos=True),
    _chatter(
        "internvl",
        "InternVL",
        "InternVLForConditionalGeneration",
        patchers.build_internvl,
        "internvl",
        has_videos=True,
    ),
    _chatter(
        "qwen2-vl", "Qwen2-VL", "Qwen2VLForConditionalGeneration", patchers.build_qwen2_vl, "qwen-vl", has_videos=True
    ),
    _chatter(
        "qwen2.5-vl",
        "Qwen2.5-VL",
        "Qwen2_5_VLForConditionalGeneration",
        patchers.build_qwen2_5_vl,
        "qwen-vl",
        has_videos=True,
    ),
    _chatter(
        "qwen3-vl", "Qwen3-VL", "Qwen3VLForConditionalGeneration", patchers.build_qwen3_vl, "qwen-vl", has_videos=True
    ),
    Row(
        "minicpm-v-4.6",
        "MiniCPM-V 4.6",
        "MiniCPMV4_6ForConditionalGeneration",
        patchers.build_minicpmv4_6,
        "minicpm",
        vllm="needs torchvision",
        vllm_dtype="bfloat16",  # "CPU GDN attention requires BF16"
        has_videos=True,
    ),
    _captioner(
        "florence2", "Florence-2", "Florence2ForConditionalGeneration", captioners.build_florence2, "florence2"
    ),
    _captioner("git", "GIT", "GitForCausalLM", captioners.build_git, "git"),
    _captioner("kosmos2", "Kosmos-2", "Kosmos2ForConditionalGeneration", captioners.build_kosmos2, "kosmos2"),
    Row(
        "paligemma",
        "PaliGemma",
        "PaliGemmaForConditionalGeneration",
        chatters.build_paligemma,
        "paligemma",
        image_limit=1,
        needs_image=True,
        vllm="needs torchvision",
        vllm_differs="vLLM's attention on CPUs has no mask for prompts that see forward",
    ),
    _chatter("gemma3", "Gemma 3", "Gemma3ForConditionalGeneration", chatters.build_gemma3),
    _text("llama", "Llama", "LlamaForCausalLM", tiny_models.build_llama),
    _text("qwen2", "Qwen 2 and 2.5", "Qwen2ForCausalLM", texts.build_qwen2),
    _text("qwen3", "Qwen 3", "Qwen3ForCausalLM", texts.build_qwen3),
    _text("opt", "OPT", "OPTForCausalLM", texts.build_opt),
    Row(
        "minicpm-v-2.6",
        "MiniCPM-V 2.6",
        "MiniCPMV (remote code, its own `chat`)",
        remote_code.build_minicpmv,
        "minicpm",
        needs_code=True,
        note=LOADER,
    ),
    Row(
        "minicpm-o-2.6",
        "MiniCPM-o 2.6",
        "MiniCPMO (remote code, its own `chat`)",
        remote_code.build_minicpmo,
        "minicpm",
        needs_code=True,
        note=LOADER,
    ),
    Row(
        "cogvlm",
        "CogVLM, CogVLM2",
        "CogVLMForCausalLM (remote code, makes its own inputs)",
        remote_code.build_cogvlm,
        image_limit=1,
        needs_code=True,
        note=LOADER,
    ),
    Row(
        "xgen-mm",
        "xGen-MM (BLIP-3)",
        "XGenMMModelForConditionalGeneration (remote code, its own special tokens)",
        remote_code.build_xgenmm,
        needs_code=True,
        note=LOADER,
    ),
    Row(
        "remote-code",
        "other remote code",
        "remote code that names `AutoModelForImageTextToText`",
        remote_code.build_remote_vlm,
        needs_code=True,
        note=LOADER,
    ),
)
