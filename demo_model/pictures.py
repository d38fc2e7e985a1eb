"""The training pictures, drawn ahead by several processes into shards on disk.

A shard is one `.npz`-like folder of arrays: pixels exactly as the model's image processor makes them (before
the division by 255), the scene behind each picture, and which shape covers which patch. Every shard has its
own seed, so an interrupted preparation goes on where it stopped and gives the same files.
"""

import multiprocessing
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from demo_model.drawing import Layout, paint, random_layout
from demo_model.scenes import BACKGROUNDS, COLORS, KINDS, SIZES, Scene, Shape, random_split_scene
from demo_model.shapeless import render_shapeless

PICTURES_PER_SHARD = 2000
SHAPELESS_SHARE = 0.14
HELD_OUT = "held-out"  # the name of the one shard of held-out scenes
_BACKGROUND_NAMES = tuple(BACKGROUNDS)


def processed_pixels(picture: Image.Image) -> np.ndarray:
    """Height × width × RGB, uint8, from the very image processor that ships with the model."""
    global _processor
    if _processor is None:
        from demo_model.architecture import image_processor

        _processor = image_processor()
    batch = _processor(picture, do_rescale=False, do_normalize=False, return_tensors="np")
    return np.ascontiguousarray(batch["pixel_values"][0, 0].transpose(1, 2, 0)).astype(np.uint8)


_processor = None


def covering_shapes(layout: Layout, patches_per_side: int) -> np.ndarray:
    """For each patch 0, or 1 + the index of the shape on it (the nearest one, if its middle is inside)."""
    covering = np.zeros((patches_per_side, patches_per_side), np.int8)
    middles = (np.arange(patches_per_side) + 0.5) / patches_per_side
    for index, placement in enumerate(layout.placements):
        across = np.abs(middles * layout.width - placement.x) / (placement.diameter / 2)
        down = np.abs(middles * layout.height - placement.y) / (placement.diameter / 2)
        inside = np.maximum(across[None, :], down[:, None]) < 0.9
        column = min(patches_per_side - 1, int(placement.x / layout.width * patches_per_side))
        row = min(patches_per_side - 1, int(placement.y / layout.height * patches_per_side))
        inside[row, column] = True
        covering[inside] = index + 1
    return covering.ravel()


def encode_scene(scene: Scene | None) -> np.ndarray:
    """13 small numbers: background, then kind, color, size, place of up to three shapes; -1 for none."""
    row = np.full(13, -1, np.int8)
    if scene is not None:
        row[0] = _BACKGROUND_NAMES.index(scene.background)
        for index, shape in enumerate(scene.shapes):
            codes = (KINDS.index(shape.kind), COLORS.index(shape.color), SIZES.index(shape.size), shape.place)
            row[1 + 4 * index : 5 + 4 * index] = codes
    return row


def decode_scene(row: np.ndarray) -> Scene | None:
    """The inverse of `encode_scene`."""
    if row[0] < 0:
        return None
    shapes = tuple(
        Shape(KINDS[kind], COLORS[color], SIZES[size], int(place))
        for kind, color, size, place in row[1:].reshape(3, 4)
        if kind >= 0
    )
    return Scene(shapes, _BACKGROUND_NAMES[row[0]])


def _draw_shard(task: tuple[Path, int]) -> str:
    from demo_model.architecture import IMAGE_SIDE, NUM_PATCHES, PATCHES_PER_SIDE

    folder, seed = task
    if (folder / "done").exists():
        return folder.name
    folder.mkdir(parents=True, exist_ok=True)
    is_held_out = folder.name == HELD_OUT
    rng = random.Random(f"{seed}/{folder.name}")
    pixels = np.empty((PICTURES_PER_SHARD, IMAGE_SIDE, IMAGE_SIDE, 3), np.uint8)
    scenes = np.empty((PICTURES_PER_SHARD, 13), np.int8)
    covering = np.zeros((PICTURES_PER_SHARD, NUM_PATCHES), np.int8)
    for index in range(PICTURES_PER_SHARD):
        scene = None if rng.random() < SHAPELESS_SHARE else random_split_scene(rng, held_out=is_held_out)
        if scene is None:
            picture = render_shapeless(rng)
        else:
            layout = random_layout(scene, rng)
            picture = paint(scene, layout, rng)
            covering[index] = covering_shapes(layout, PATCHES_PER_SIDE)
        pixels[index], scenes[index] = processed_pixels(picture), encode_scene(scene)
    np.save(folder / "pixels.npy", pixels)
    np.save(folder / "scenes.npy", scenes)
    np.save(folder / "covering.npy", covering)
    (folder / "done").touch()
    return folder.name


def draw_shards(folder: Path, names: Sequence[str], *, seed: int, processes: int) -> Iterator[str]:
    """Draws the shards that are missing; yields the name of each as it is ready."""
    tasks = [(folder / name, seed) for name in names]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from pool.imap_unordered(_draw_shard, tasks)


def load_shards(folder: Path, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels, scenes and covering shapes of these shards, one after another."""
    folders = [folder / name for name in names]
    picture_shape = np.load(folders[0] / "pixels.npy", mmap_mode="r").shape[1:]
    pixels = np.empty((len(folders) * PICTURES_PER_SHARD, *picture_shape), np.uint8)
    for index, shard in enumerate(folders):
        pixels[index * PICTURES_PER_SHARD : (index + 1) * PICTURES_PER_SHARD] = np.load(shard / "pixels.npy")
    scenes = np.concatenate([np.load(shard / "scenes.npy") for shard in folders])
    covering = np.concatenate([np.load(shard / "covering.npy") for shard in folders])
    return pixels, scenes, covering
