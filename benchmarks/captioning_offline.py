"""Captions a folder with vLLM's own `LLM`, as people do without a service; `captioning.py` starts it.

`chat`: one call of `LLM.chat` with every file, which vLLM opens by itself. `script`: the usual script, which opens
all images, then calls `LLM.generate` for 16 at a time. Prints one JSON line: the captions, and the seconds without
the loading of the model.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image
from vllm import LLM, SamplingParams

from benchmarks.serving.engine import ENGINE_ARGS

BATCH = 16


def main(way: str, folder: Path, checkpoint: str, prompt: str, max_tokens: int) -> None:
    files = sorted(folder.glob("*.jpg"))
    llm = LLM(checkpoint, allowed_local_media_path=str(folder), **ENGINE_ARGS)
    sampling = SamplingParams(temperature=0, max_tokens=max_tokens)
    begun_s = time.perf_counter()
    captions = chat(llm, files, prompt, sampling) if way == "chat" else script(llm, files, prompt, sampling)
    seconds = time.perf_counter() - begun_s
    print(json.dumps({"seconds": seconds, "captions": captions}))


def chat(llm: LLM, files: list[Path], prompt: str, sampling: SamplingParams) -> list[str]:
    conversations: list[Any] = [_messages({"type": "image_url", "image_url": {"url": f"file://{file}"}}, prompt)
                                for file in files]  # fmt: skip
    return [output.outputs[0].text for output in llm.chat(conversations, sampling, use_tqdm=False)]


def script(llm: LLM, files: list[Path], prompt: str, sampling: SamplingParams) -> list[str]:
    images = [Image.open(file).convert("RGB") for file in files]
    text = llm.get_tokenizer().apply_chat_template(
        _messages({"type": "image"}, prompt), tokenize=False, add_generation_prompt=True
    )
    captions = []
    for begin in range(0, len(images), BATCH):
        prompts: list[Any] = [
            {"prompt": text, "multi_modal_data": {"image": image}} for image in images[begin : begin + BATCH]
        ]
        captions += [output.outputs[0].text for output in llm.generate(prompts, sampling, use_tqdm=False)]
    return captions


def _messages(image: dict[str, Any], prompt: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [image, {"type": "text", "text": prompt}]}]


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4], int(sys.argv[5]))
