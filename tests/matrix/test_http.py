"""Every promised architecture through HTTP, on real Ray Serve: several models in one service, group by group."""

import base64
import io
from typing import Any

import httpx
import pytest
from PIL import Image

from serve_app.families import caption_prompt
from tests.matrix.conftest import Checkpoints
from tests.matrix.outcomes import record
from tests.matrix.rows import ROWS, Row
from tests.service import serving

_GROUP_SIZE = 10  # models at a time: each is a process with torch and transformers in it, about 0.4 GiB
_GROUPS = [ROWS[start : start + _GROUP_SIZE] for start in range(0, len(ROWS), _GROUP_SIZE)]


def _application(row: Row, source: str) -> dict[str, Any]:
    settings = {"source": source, "engine": "transformers", "tasks": list(row.tasks), "num_cpus": 0.05}
    return {
        "name": row.name,
        "import_path": "serve_app.app:build_model",
        "route_prefix": None,
        "args": settings | {"trust_remote_code": row.needs_code, "dtype": "float32", "metrics_application": None},
    }


def _config(rows: tuple[Row, ...], checkpoints: Checkpoints) -> dict[str, Any]:
    models = [_application(row, str(checkpoints.of(row))) for row in rows]
    ingress = {
        "name": "ingress",
        "import_path": "serve_app.app:build_ingress",
        "route_prefix": "/",
        "args": {"num_cpus": 0.2, "metrics_application": None},
        "deployments": [{"name": "Ingress", "user_config": {"models": [row.name for row in rows]}}],
    }
    return {"proxy_location": "HeadOnly", "applications": [*models, ingress]}


def _png(seed: int) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((48, 32), 40 + 30 * seed).convert("RGB").save(file, "PNG")
    return file.getvalue()


_IMAGES = {seed: _png(seed) for seed in (1, 2)}


@pytest.mark.models
@pytest.mark.timeout(600)
@pytest.mark.parametrize("rows", _GROUPS, ids=lambda rows: f"{rows[0].name}-to-{rows[-1].name}")
def test_they_caption_and_chat(rows: tuple[Row, ...], checkpoints: Checkpoints, subtests: pytest.Subtests) -> None:
    config = _config(rows, checkpoints)
    with serving(config, start_timeout_s=400) as running, running.client as client:  # ten models, perhaps two cores
        running.wait_until_ready(timeout_s=240)
        for row in rows:
            with subtests.test(row.name):
                _check(client, row)


def _check(client: httpx.Client, row: Row) -> None:
    known = client.get(f"/v1/models/{row.name}").json()
    assert (known["state"], known["tasks"], known["engine"]) == ("ready", list(row.tasks), "transformers")
    assert known["image_limit"] == (row.image_limit or None)
    if "caption" in row.tasks:
        _captions(client, row)
    _chats(client, row)
    record(row.name, "http", " and ".join(row.tasks))


def _captions(client: httpx.Client, row: Row) -> None:
    """Two images at once, in order, each with the caption that it has alone."""
    asked = {"model": row.name, "max_tokens": 12}
    answers = [_caption(client, asked, [seed]) for seed in (1, 2)]
    both = _caption(client, asked, [1, 2])
    assert both == [answers[0][0], answers[1][0]]
    if row.image_limit == 1:  # all of them captioners with a prompt of their family
        assert caption_prompt(row.family, "short") not in both


def _caption(client: httpx.Client, asked: dict[str, Any], seeds: list[int]) -> list[str]:
    files = [("image", (f"{seed}.png", _IMAGES[seed], "image/png")) for seed in seeds]
    response = client.post("/v1/captions", data=asked, files=files)
    assert response.status_code == 200, response.text
    outcomes = response.json()["data"]
    assert [outcome["object"] for outcome in outcomes] == ["caption"] * len(seeds), outcomes
    return [outcome["caption"] for outcome in outcomes]


def _chats(client: httpx.Client, row: Row) -> None:
    """Whole and streamed alike; one image too many is a 400 that names the limit."""
    image = {"type": "image_url", "image_url": {"url": _data_uri(_IMAGES[1])}}
    content = ([image] if row.takes_images else []) + [{"type": "text", "text": "what is it?"}]
    body = {"model": row.name, "messages": [{"role": "user", "content": content}], "max_tokens": 12, "temperature": 0}
    response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    answer = response.json()
    assert answer["usage"]["completion_tokens"] > 0
    streamed = client.post("/v1/chat/completions", json=body | {"stream": True}).text
    assert streamed.rstrip().endswith("data: [DONE]")
    if row.image_limit == 1:
        body["messages"] = [{"role": "user", "content": [image, *content]}]
        refused = client.post("/v1/chat/completions", json=body)
        assert refused.status_code == 400
        assert "2 images" in refused.json()["error"]["message"]


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
