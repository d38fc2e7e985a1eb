"""Trains the demo model on this machine's CPU: `python -m demo_model.train --help`.

Draws the pictures, trains the tokenizer, lets the vision tower see (patch labels alone), then the language model read
what the resting tower shows it, in cheaper steps, and at last the whole model speak. Progress goes to
stdout; an interrupted run goes on where it stopped when started again with the same folder. The checkpoint is written
anew now and then, so there is a usable model before the end.
"""

import argparse
import json
import os
import random
import shutil
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import Idefics3ForConditionalGeneration, PreTrainedTokenizerFast

from demo_model.alignment import Alignment
from demo_model.architecture import VISION_WIDTH, model_config, new_model
from demo_model.exact_match import exact_match
from demo_model.learning import (
    answer_logits_of,
    image_tokens,
    mixed_precision,
    normalized,
    patch_features,
    patch_loss,
    prepare,
    word_loss,
)
from demo_model.looking import LAYER, Looking
from demo_model.optimizers import make_optimizers, rate_factor, set_rates
from demo_model.packing import Batch, Packer, Row
from demo_model.patch_embedding import NUM_PICTURES, whiten
from demo_model.perception import PatchHeads
from demo_model.pictures import HELD_OUT, decode_scene, draw_shards, load_shards
from demo_model.scenes import Scene
from demo_model.wording import make_processor, token_ids, train_tokenizer
from serve_app.demo import CHECKPOINT

_ROW_LENGTH = 160
_ROWS_PER_STEP = 24
_LONG_EVERY = 4  # every fourth step has fewer, longer rows, so that long texts and chats aren't new to the model
_LONG_ROW_LENGTH, _LONG_ROWS_PER_STEP, _LONG_TEXT_SHARE = 600, 6, 0.8
_DIALOGUE_SHARE = 0.24  # rows of other conversations than one picture and its questions
_PICTURES_PER_STEP = 128  # while only the vision tower learns
_STAGES = (("seeing", 0.0), ("reading", 0.22), ("speaking", 0.52))  # each from this share of the time
_ONLY_SEEN_PER_STEP = 48  # pictures without words in each later step: kinds are the hardest thing to learn
_LOSS_WEIGHTS = {"words": 1.0, "aligned": 0.3, "looked": 0.2, "patches": 1.0}
_CONTINUE_AT = 0.75  # where in a run one that starts from a checkpoint begins: at half the rate
_HEAD_STEPS = 100
_SAVE_EVERY_S = 60
_EXPORT_EVERY_S = 480
_PRINT_EVERY = 25


@dataclass(frozen=True, slots=True)
class Plan:
    minutes: float
    seed: int
    shards: int
    folder: Path
    output: Path
    start_from: Path | None


class Pictures:
    """All pictures of one side of the held-out rule, in memory."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        pixels, self.scenes, self.covering = load_shards(folder, names)
        self.pixels = torch.from_numpy(pixels)

    def __len__(self) -> int:
        return len(self.pixels)

    def draw(self, rng: random.Random) -> tuple[int, Scene | None]:
        index = rng.randrange(len(self))
        return index, decode_scene(self.scenes[index])


class Training:
    def __init__(self, plan: Plan, tokenizer: PreTrainedTokenizerFast) -> None:
        torch.manual_seed(plan.seed)
        self.plan = plan
        self.packer = Packer(tokenizer, _ROW_LENGTH)
        self.alignment = Alignment(tokenizer)
        self.looking = Looking(tokenizer, self.packer.image)
        self.processor = make_processor(tokenizer)
        self.model: Idefics3ForConditionalGeneration = new_model(model_config(token_ids(tokenizer)))
        prepare(self.model)
        self.heads = PatchHeads(VISION_WIDTH)
        self.stage = "seeing"
        self.optimizers = self._stage_optimizers()
        self.step, self.stage_step, self.seconds = 0, 0, 0.0
        self._state_file = plan.folder / "state.pt"

    def _stage_optimizers(self) -> list[torch.optim.Optimizer]:
        """Optimizers of what the stage trains; the rest has no gradient in it."""
        tower = self.model.model.vision_model
        self.model.requires_grad_(self.stage != "seeing")
        tower.requires_grad_(self.stage != "reading")
        modules = [self.model] if self.stage == "reading" else [self.model, self.heads]
        return make_optimizers(modules)

    @property
    def progress(self) -> float:
        return self.seconds / (60 * self.plan.minutes)

    @property
    def has_state(self) -> bool:
        """Whether an earlier run left something to go on from."""
        return self._state_file.exists()

    def resume(self) -> None:
        state = torch.load(self._state_file, weights_only=True)
        self.stage = state["stage"]
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        self.optimizers = self._stage_optimizers()
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.stage_step, self.seconds = state["step"], state["stage_step"], state["seconds"]
        print(f"goes on at step {self.step}, {self.seconds / 60:.1f} minutes into {self.plan.minutes:g}", flush=True)

    def start_anew(self, pictures: Pictures) -> None:
        chosen = np.random.default_rng(self.plan.seed).choice(len(pictures), NUM_PICTURES, replace=False)
        whiten(self.model.model.vision_model.embeddings.patch_embedding, normalized(pictures.pixels[chosen]))

    def start_from(self, checkpoint: Path, pictures: Pictures) -> None:
        """Go on from a checkpoint's weights, in the part of the run in which the rate falls."""
        weights = Idefics3ForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).state_dict()
        self.model.load_state_dict(weights)
        self.stage, self.seconds = "speaking", _CONTINUE_AT * 60 * self.plan.minutes
        self.optimizers = self._stage_optimizers()
        self._fit_heads(pictures)

    def _fit_heads(self, pictures: Pictures) -> None:
        """New heads on a tower that sees already: their first errors would undo what it has learned."""
        optimizer = torch.optim.AdamW(self.heads.parameters(), lr=1e-2)
        for step in range(_HEAD_STEPS):
            with torch.no_grad(), mixed_precision():
                chosen = self._chosen(pictures, random.Random(f"{self.plan.seed}/heads/{step}"))
                features = patch_features(self.model, pictures.pixels[chosen])
            loss, _ = patch_loss(self.heads, features.float(), pictures.scenes[chosen], pictures.covering[chosen])
            loss.backward()  # type: ignore[no-untyped-call]  # torch's
            optimizer.step()
            optimizer.zero_grad()

    def save(self) -> None:
        state = {
            "stage": self.stage, "step": self.step, "stage_step": self.stage_step, "seconds": self.seconds,
            "model": self.model.state_dict(), "heads": self.heads.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }  # fmt: skip
        torch.save(state, self._state_file.with_suffix(".tmp"))
        os.replace(self._state_file.with_suffix(".tmp"), self._state_file)

    def run(self, trained_on: Pictures, held_out: Pictures) -> None:
        """Steps until the time is used up."""
        saved = exported = printed = self.seconds
        totals: dict[str, float] = defaultdict(float)
        while self.progress < 1:
            started_s = _core_seconds()
            stage = next(name for name, begin in reversed(_STAGES) if self.progress >= begin)
            if stage != self.stage:
                self.stage, self.stage_step = stage, 0
                self.optimizers = self._stage_optimizers()
                totals.clear()
            for name, value in self._one_step(trained_on).items():
                totals[name] += value / _PRINT_EVERY
            self.seconds += _core_seconds() - started_s
            if self.step % _PRINT_EVERY == 0:
                rate = _PRINT_EVERY / max(self.seconds - printed, 1e-9)
                self._print_progress(rate, totals)
                printed = self.seconds
                totals.clear()
            if self.seconds - saved > _SAVE_EVERY_S:
                self.save()
                saved = self.seconds
            if self.stage != "seeing" and self.seconds - exported > _EXPORT_EVERY_S:
                self._print_accuracy(held_out)
                self.export()
                exported = self.seconds
        self.save()
        self._print_accuracy(held_out)
        self.export()

    def _print_progress(self, rate: float, totals: dict[str, float]) -> None:
        losses = ", ".join(f"{name} {value:.3f}" for name, value in totals.items())
        left = self.plan.minutes - self.seconds / 60
        print(f"{self.stage} step {self.step}: {rate:.2f} steps/s, {losses}, {left:.1f} minutes left", flush=True)

    def _one_step(self, pictures: Pictures) -> dict[str, float]:
        rng = random.Random(f"{self.plan.seed}/step/{self.step}")
        with mixed_precision():
            losses = self._seeing(pictures, rng) if self.stage == "seeing" else self._conversing(pictures, rng)
        losses["loss"].backward()  # type: ignore[no-untyped-call]  # torch's
        modules = [self.model, self.heads]
        torch.nn.utils.clip_grad_norm_([p for module in modules for p in module.parameters() if p.requires_grad], 1.0)
        set_rates(self.optimizers, rate_factor(self.stage_step, self.progress))
        for optimizer in self.optimizers:
            optimizer.step()
        for module in modules:
            module.zero_grad(set_to_none=True)
        self.step += 1
        self.stage_step += 1
        return {name: float(value.detach()) for name, value in losses.items()}

    def _seeing(self, pictures: Pictures, rng: random.Random) -> dict[str, torch.Tensor]:
        chosen = self._chosen(pictures, rng)
        features = patch_features(self.model, pictures.pixels[chosen])
        loss, right = patch_loss(self.heads, features, pictures.scenes[chosen], pictures.covering[chosen])
        return {"loss": loss, **{name: torch.tensor(share) for name, share in right.items()}}

    def _chosen(self, pictures: Pictures, rng: random.Random) -> np.ndarray:
        return np.array([rng.randrange(len(pictures)) for _ in range(_PICTURES_PER_STEP)])

    def _conversing(self, pictures: Pictures, rng: random.Random) -> dict[str, torch.Tensor]:
        is_long = self.step % _LONG_EVERY == 0
        self.packer.length = _LONG_ROW_LENGTH if is_long else _ROW_LENGTH
        rows: list[Row] = []
        for _ in range(_LONG_ROWS_PER_STEP if is_long else _ROWS_PER_STEP):
            if is_long and rng.random() < _LONG_TEXT_SHARE:
                rows.append(self.packer.long_row(lambda: pictures.draw(rng), rng))
                continue
            if rng.random() < _DIALOGUE_SHARE:
                rows.append(self.packer.dialogue_row(lambda: pictures.draw(rng), rng))
            else:
                index, scene = pictures.draw(rng)
                rows.append(self.packer.one_picture_row(index, scene, rng))
        batch = self.packer.batch(rows)
        if self.stage == "reading":
            with torch.no_grad():
                features = patch_features(self.model, pictures.pixels[batch.pictures])
            return self._weighed(self._language(features, batch, pictures))
        only_seen = [rng.randrange(len(pictures)) for _ in range(_ONLY_SEEN_PER_STEP)]
        chosen = np.concatenate([batch.pictures.numpy(), np.array(only_seen)])
        features = patch_features(self.model, pictures.pixels[chosen])
        patches, _ = patch_loss(self.heads, features, pictures.scenes[chosen], pictures.covering[chosen])
        return self._weighed(self._language(features[: len(batch.pictures)], batch, pictures) | {"patches": patches})

    def _weighed(self, told: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        loss = torch.stack([weight * told[name] for name, weight in _LOSS_WEIGHTS.items() if name in told]).sum()
        return {"loss": loss, **told}

    def _language(self, features: torch.Tensor, batch: Batch, pictures: Pictures) -> dict[str, torch.Tensor]:
        """The losses of the answers and of both side tasks, and the share of the answers' tokens that is right."""
        images = image_tokens(self.model, features)
        logits, labels, attentions = answer_logits_of(self.model, images, batch, self.packer.image)
        scenes, covering = pictures.scenes[batch.pictures.numpy()], pictures.covering[batch.pictures.numpy()]
        return {
            "words": word_loss(logits, labels),
            "aligned": self.alignment.loss(self.model, images, scenes, covering),
            "looked": self.looking.loss(attentions[LAYER], batch, scenes, covering),
            "right": (logits.argmax(-1) == labels).float().mean(),
        }

    def _print_accuracy(self, held_out: Pictures) -> None:
        shares = exact_match(self.model, self.processor.tokenizer, held_out.pixels, held_out.scenes)
        told = ", ".join(f"{kind} {100 * share:.0f}" for kind, share in shares.items())
        print(f"held-out exact match in %: {told}", flush=True)

    def export(self) -> None:
        """Writes the checkpoint in bfloat16, each file replaced at once."""
        temporary = self.plan.folder / "export"
        shutil.rmtree(temporary, ignore_errors=True)
        copy = new_model(self.model.config)
        copy.load_state_dict(self.model.state_dict())
        copy.to(torch.bfloat16).save_pretrained(temporary)
        self.processor.save_pretrained(temporary)
        facts = {"steps": self.step, "minutes": round(self.seconds / 60), "seed": self.plan.seed, "note": ""}
        (temporary / "training.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        self.plan.output.mkdir(parents=True, exist_ok=True)
        for file in sorted(temporary.iterdir()):
            staged = self.plan.output / f".{file.name}.tmp"
            shutil.copyfile(file, staged)
            os.replace(staged, self.plan.output / file.name)
        print(f"wrote {self.plan.output}", flush=True)


def _core_seconds() -> float:
    """Seconds of all cores that this process has used: other work beside it makes a run longer, not worse."""
    return time.process_time() / torch.get_num_threads()


def _tokenizer(plan: Plan) -> PreTrainedTokenizerFast:
    """The tokenizer of this folder; kept, because other tokens would make an interrupted run's weights worthless."""
    folder = plan.folder / "tokenizer"
    if plan.start_from:
        folder = plan.start_from
    elif not folder.exists():
        train_tokenizer(plan.seed).save_pretrained(folder)
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
    return tokenizer


def train(plan: Plan) -> None:
    """Everything from nothing, or from what an earlier run left in the folder."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    names = [str(shard) for shard in range(plan.shards)] + [HELD_OUT]
    pictures_folder = plan.folder / "pictures"
    for done, _ in enumerate(draw_shards(pictures_folder, names, seed=plan.seed, processes=os.cpu_count() or 1)):
        print(f"drew {done + 1} of {len(names)} shards", flush=True)
    training = Training(plan, _tokenizer(plan))
    trained_on, held_out = Pictures(pictures_folder, names[:-1]), Pictures(pictures_folder, names[-1:])
    if training.has_state:
        training.resume()
    elif plan.start_from:
        training.start_from(plan.start_from, trained_on)
    else:
        training.start_anew(trained_on)
    training.run(trained_on, held_out)


def _parsed() -> Plan:
    parser = argparse.ArgumentParser(prog="python -m demo_model.train", description=__doc__)
    parser.add_argument("--minutes", type=float, default=57, help="time for training on all cores, after drawing")
    parser.add_argument("--seed", type=int, default=1, help="fixes pictures, words and first weights")
    parser.add_argument("--shards", type=int, default=40, help="number of files of 2,000 pictures")
    parser.add_argument("--folder", type=Path, default=Path("build/demo-model"), help="pictures and resumable state")
    parser.add_argument("--output", type=Path, default=CHECKPOINT, help="where the model is written")
    parser.add_argument(
        "--start-from", type=Path, help="go on from this checkpoint's weights, for the last quarter of --minutes"
    )
    return Plan(**vars(parser.parse_args()))


if __name__ == "__main__":
    train(_parsed())
