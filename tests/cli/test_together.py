"""Small images in one request: what they share, what each keeps for itself."""

import json
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response

from serve_app.cli.captioning.inputs.walk import Inputs
from serve_app.cli.captioning.outputs.rows import CaptionSettings
from serve_app.cli.captioning.outputs.target import Target
from serve_app.cli.captioning.request import CaptionRequest
from serve_app.cli.captioning.session import Session
from tests.cli_fake import EXPECTED, NUM_IMAGES, FakeApi, captions, failure, run

pytestmark = pytest.mark.engine

RUN = ("caption", "in", "-o", "o.jsonl", "--concurrency", "32")


def rows(folder: Path) -> dict[str, Any]:
    return {row["file"]: row for row in map(json.loads, (folder / "o.jsonl").read_text().splitlines())}


def test_small_images_share_requests(api: FakeApi, url: str, folder: Path) -> None:
    api.delay_s = 0.1
    assert run(*RUN, url=url, cwd=folder).returncode == 0
    assert captions(folder, "o.jsonl") == EXPECTED
    assert max(api.seen.values()) == 1
    assert api.num_requests <= NUM_IMAGES // 4
    assert {row["usage"]["completion_tokens"] for row in rows(folder).values()} == {3}


def test_alone_where_that_is_asked_for_or_an_image_is_large(api: FakeApi, url: str, folder: Path) -> None:
    assert run(*RUN, "--together", "1", url=url, cwd=folder).returncode == 0
    assert api.num_requests == NUM_IMAGES
    (folder / "large").mkdir()
    for name in "abc":
        (folder / f"large/{name}.jpg").write_text(name * 1_000_001)
    assert run("caption", "large", "-o", "l.jsonl", url=url, cwd=folder).returncode == 0
    assert api.num_requests == NUM_IMAGES + 3


def test_only_what_asks_the_same_goes_together(api: FakeApi, url: str, folder: Path) -> None:
    assert run(*RUN, "--prompt", "What is in {name}?", url=url, cwd=folder).returncode == 0
    assert api.num_requests == NUM_IMAGES
    assert captions(folder, "o.jsonl") == EXPECTED


def test_a_bad_image_is_its_own_failure(api: FakeApi, url: str, folder: Path) -> None:
    api.fault = lambda content, _: failure(400, "invalid_image", "this looks like text") if content == "p7" else None
    assert run(*RUN, url=url, cwd=folder).returncode == 1
    assert rows(folder)["in/007.jpg"]["error"]["code"] == "invalid_image"
    assert max(api.seen.values()) == 1
    assert sum("error" in row for row in rows(folder).values()) == 1


def test_what_may_pass_is_asked_again_alone(api: FakeApi, url: str, folder: Path) -> None:
    """A replica that dies under one image, and an image that kills every request that it is in."""

    def fault(content: str, num_times: int) -> Response | None:
        if content == "p3" and num_times == 1:
            return failure(503, "replica_died", "its replica died")
        return failure(500, "engine_failed", "the engine failed") if content == "p50" else None

    api.fault = fault
    assert run(*RUN, url=url, cwd=folder).returncode == 1
    by_file = rows(folder)
    assert by_file.pop("in/050.jpg")["error"]["code"] == "engine_failed"
    assert Counter((file, row["caption"]) for file, row in by_file.items()) == EXPECTED - Counter(
        {("in/050.jpg", "caption of p50"): 1}
    )


def refused_above(most: int, refusal: Response, contents: list[str]) -> Response | None:
    return refusal if len(contents) > most else None


@pytest.mark.parametrize("most", [1, 3])
def test_a_service_that_takes_fewer_images_gets_fewer(api: FakeApi, url: str, folder: Path, most: int) -> None:
    """By its limit of images in a request, and by a key's of images a minute, which a larger group never passes."""
    for status, code in ((400, "too_many_images"), (429, "rate_limit_exceeded")):
        num_images: list[int] = []

        def count(request: Request, num_images: list[int] = num_images) -> None:
            if request.method == "POST":
                num_images.append(0)

        def count_image(data: bytes, num_images: list[int] = num_images) -> None:
            num_images[-1] += 1

        api.sees, api.sees_image = count, count_image
        refusal = failure(status, code, "fewer, please", retry_after="0")
        api.whole_fault = partial(refused_above, most, refusal)
        done = run(*RUN, "--overwrite", "--concurrency", "8", url=url, cwd=folder)
        assert done.returncode == 0, done.stderr
        assert captions(folder, "o.jsonl") == EXPECTED
        assert max(num_images) > most


def test_a_wrong_field_ends_the_run_after_one_request(api: FakeApi, url: str, folder: Path) -> None:
    api.fault = lambda *_: failure(400, "invalid_request", "style: no such style", "style")
    done = run(*RUN, "--style", "x", url=url, cwd=folder)
    assert done.returncode == 2
    assert b"no such style" in done.stderr
    assert api.seen.total() <= 32


def test_the_model_of_the_first_answer_stays(api: FakeApi, url: str, folder: Path) -> None:
    """Also where the service has another first model in the middle of a run."""
    assert run(*RUN, "--concurrency", "1", url=url, cwd=folder).returncode == 0
    assert [form.get("model") for form in api.forms] == [None] + ["m"] * (NUM_IMAGES - 1)
    assert {row["asked_model"] for row in rows(folder).values()} == {None}
    api.forms.clear()
    api.whole_fault = lambda contents: (
        failure(404, "model_not_found", "no model 'm'", "model") if api.forms[-1].get("model") else None
    )
    assert run(*RUN, "--concurrency", "1", "--overwrite", url=url, cwd=folder).returncode == 0
    assert captions(folder, "o.jsonl") == EXPECTED


@pytest.mark.parametrize(("delay_s", "concurrency", "most"), [(0.6, None, 16), (0.2, None, 44), (0.6, 32, 32)])
def test_a_slow_service_gets_few_at_once(
    api: FakeApi, url: str, folder: Path, monkeypatch: pytest.MonkeyPatch, delay_s: float, concurrency: int | None,
    most: int,
) -> None:  # fmt: skip
    """Unless the command says how many. An answer within half a second is quick here."""
    monkeypatch.setattr("serve_app.cli.captioning.run.QUICK_S", 0.5)
    api.delay_s = delay_s
    settings = CaptionSettings()
    session = Session(
        url=url, api_key=None, inputs=Inputs([str(folder / "in")]), request=CaptionRequest(settings),
        target=Target(str(folder / "o.jsonl")), concurrency=concurrency, limit=None, patience_s=1,
    )  # fmt: skip
    assert session.run() == 0
    assert captions(folder, "o.jsonl") == EXPECTED
    assert most - 16 < api.most_at_once <= most
