"""The images of one prompt, from whichever dialect: counted against the limits, then fetched and decoded."""

import asyncio
from collections.abc import Sequence

from serve_app.errors import TooManyImages
from serve_app.exchange.exchange import Exchange
from serve_app.exchange.lane import Lane
from serve_app.images.gate import ImageSource
from serve_app.messages import RgbImage
from serve_app.models.entry import ModelEntry


async def load_images(
    exchange: Exchange,
    lane: Lane,
    model: ModelEntry,
    sources: Sequence[ImageSource],
    params: Sequence[str],
    field: str,
) -> list[RgbImage]:
    """All at once; the first that fails ends the others. Raises what is wrong with them or too much.

    `params` name each image in the client's spelling, `field` the part of the body that has them all.
    """
    if not sources:
        return []
    model.require_images(params[0])
    most = lane.config.max_images_per_request
    if len(sources) > most:
        raise TooManyImages(f"{field}: {len(sources)} images, and a request takes {most}: send fewer", field)
    await lane.count_images(exchange.key, len(sources))
    return await exchange.in_time(_all(lane, model, sources, params))


async def _all(
    lane: Lane, model: ModelEntry, sources: Sequence[ImageSource], params: Sequence[str]
) -> list[RgbImage]:
    tasks = [asyncio.create_task(lane.load_image(model, *pair)) for pair in zip(sources, params, strict=True)]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
