"""`/v1/captions` over the real HTTP app and the scripted engine: what is asked, and how its answers are read."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from PIL import Image

from serve_app.dialects.captions.answer import CaptionEvents, CaptionPrompt, tags_of
from serve_app.families import FAMILIES
from serve_app.messages import Chunk
from tests.drawings import b64, encode
from tests.own_lane import MODEL, bearer, lane_client, scripted

IMAGE = encode(Image.new("RGB", (4, 4), "red"))
SNOWMAN = "a <grounding> <phrase> snowman</phrase><object><patch_index_0044><patch_index_0863></object> by a fire"
SCHEMA = {"type": "object", "properties": {"caption": {"type": "string"}}}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with lane_client(tmp_path_factory.mktemp("lane"), scripted(family="joycaption")) as client:
        yield client


@pytest.fixture(scope="module")
def kosmos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with lane_client(tmp_path_factory.mktemp("kosmos"), scripted(family="kosmos2")) as client:
        yield client


def caption(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    answer = client.post("/v1/captions", json={"image": b64(IMAGE), **fields})
    assert answer.status_code == 200, answer.text
    (one,) = answer.json()["data"]
    assert isinstance(one, dict)
    return one


def uploaded(client: httpx.Client, fields: list[tuple[str, str]]) -> dict[str, Any]:
    """The same fields as a form."""
    data: dict[str, list[str]] = {}
    for name, value in fields:
        data.setdefault(name, []).append(value)
    answer = client.post("/v1/captions", data=data, files={"image": ("x.png", IMAGE)})
    assert answer.status_code == 200, answer.text
    (one,) = answer.json()["data"]
    assert isinstance(one, dict)
    return one


def test_the_answer_says_the_exact_words_that_were_sent(client: httpx.Client) -> None:
    one = caption(client, style="Straightforward", length=40, options=["include_lighting"], name="Ann")
    assert one["prompt"].startswith("Write a straightforward caption for this image within 40 words. Begin with")
    assert one["prompt"].endswith(" you must refer to them as Ann. Include information about lighting.")
    assert one["system"] == "You are a helpful image captioner."
    num_words = len(one["prompt"].split()) + len(one["system"].split())
    assert one["usage"]["prompt_tokens"] == num_words + 16  # as the scripted engine counts: both were sent
    assert set(one["timing"]) == {"image_s", "queue_s", "total_s"}
    assert one["timing"]["total_s"] >= one["timing"]["image_s"] >= 0


def test_a_form_says_the_same_as_json(client: httpx.Client) -> None:
    said = {"style": "art critic", "length": 40, "options": ["include_lighting", "exclude_text"], "name": "Ann"}
    form = [("style", "art critic"), ("length", "40"), ("options", "include_lighting"), ("options", "exclude_text")]
    assert uploaded(client, [*form, ("name", "Ann")])["prompt"] == caption(client, **said)["prompt"]
    assert uploaded(client, [("format", "tags"), ("prompt", "!echo b, a")])["tags"] == ["b", "a"]
    schema = json.dumps({"type": "json", "schema": SCHEMA})
    assert uploaded(client, [("format", schema), ("prompt", '!echo {"caption": "x"}')])["json"] == {"caption": "x"}
    guard = json.dumps({"retries": 1})
    assert len(uploaded(client, [("guard", guard), ("prompt", "!echo ...")])["guard"]["attempts"]) == 2
    assert uploaded(client, [("guard", "true")])["guard"]["passed"]
    assert "guard" not in uploaded(client, [("guard", "false")])


def test_tags_are_asked_for_as_tags_and_told_as_a_list(client: httpx.Client) -> None:
    assert caption(client, format="tags")["prompt"] == "Write a list of Booru tags for this image."
    assert caption(client, format="tags", style="e621 tag list")["prompt"].startswith(
        "Write a comma-separated list of"
    )
    one = caption(client, format="tags", prompt="!echo 1girl, solo,  red hair,\n- solo, smile.")
    assert one["tags"] == ["1girl", "solo", "red hair", "smile"]
    assert one["caption"].startswith("1girl, solo")


def test_json_is_parsed_and_null_where_it_was_cut_off(client: httpx.Client) -> None:
    whole = '!echo {"caption": "a red circle"}'
    assert caption(client, format="json", prompt=whole)["json"] == {"caption": "a red circle"}
    cut = caption(client, format={"type": "json", "schema": SCHEMA}, prompt=whole, max_tokens=2)
    assert (cut["json"], cut["finish_reason"]) == (None, "length")


def test_the_guard_says_what_it_saw_and_did_and_counts_it(client: httpx.Client) -> None:
    one = caption(client, guard=True, prompt="!echo " + "a cat " * 40)
    report = one["guard"]
    assert (report["passed"], report["findings"]) == (False, ["loop"])
    assert [attempt["findings"] for attempt in report["attempts"]] == [["loop"]] * 3
    assert report["attempts"][2]["changes"] == {"seed": 2, "temperature": 0.6, "repetition_penalty": 1.2}
    assert one["usage"]["completion_tokens"] == 3 * len(("a cat " * 40).split(" ")) - 3
    assert one["usage"]["prompt_tokens"] == 3 * (1 + 80 + 6 + 16)
    clean = caption(client, guard={"checks": ["loop"], "retries": 0})["guard"]
    assert clean == {"passed": True, "findings": [], "checks": ["loop"], "chosen": 0, "attempts": [{"findings": []}]}


def test_a_wish_that_the_model_cant_grant_takes_no_images_from_the_key(client: httpx.Client) -> None:
    for _ in range(3):
        body = {"images": [b64(IMAGE)], "style": "nothing"}
        assert client.post("/v1/captions", json=body, headers=bearer("blind")).status_code == 400


def test_grounded_answers_have_regions(kosmos: httpx.Client) -> None:
    one = caption(kosmos, prompt=f"!echo {SNOWMAN}")
    assert one["caption"] == "a   snowman by a fire"
    (region,) = one["regions"]
    assert (region["label"], region["span"]) == ("snowman", [4, 11])
    assert region["box"] == [0.390625, 0.046875, 0.984375, 0.828125]
    assert "regions" not in caption(kosmos, style="short")


def test_a_stream_ends_with_the_same_as_a_whole_answer(client: httpx.Client) -> None:
    fields = {"format": "tags", "prompt": "!echo a, b, c"}
    with client.stream("POST", "/v1/captions", json={"image": b64(IMAGE), "stream": True, **fields}) as answer:
        events = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert events.pop() == "[DONE]"
    *chunks, whole = map(json.loads, events)
    assert "".join(chunk["delta"] for chunk in chunks) == "a, b, c"
    alone = caption(client, **fields)
    assert {name: whole[name] for name in set(whole) - {"timing"}} == {
        name: alone[name] for name in set(alone) - {"timing"}
    }
    assert set(whole["timing"]) == {"image_s", "queue_s"}


def test_what_a_model_understands_is_told(client: httpx.Client) -> None:
    answer = client.get("/v1/captions/styles", params={"model": MODEL}).json()
    assert answer == client.get("/v1/captions/styles").json()
    assert (answer["model"], answer["family"]) == (MODEL, "joycaption")
    named = {style["name"]: style for style in answer["styles"]}
    assert named["descriptive"]["prompt"] == "Write a detailed description for this image."
    assert named["descriptive"]["label"] == "Descriptive"
    assert len(named) == 3 + 12
    assert len(answer["options"]) == 27
    assert answer["lengths"][0] == "any"
    assert answer["languages"] == ["en"]
    for name in named:
        assert caption(client, style=name)["prompt"] == named[name]["prompt"]
    for option in answer["options"]:
        assert caption(client, options=[option["name"]], name="{name}")["prompt"].endswith(option["text"])


def test_another_keys_model_tells_nothing(client: httpx.Client) -> None:
    answer = client.get("/v1/captions/styles", params={"model": MODEL}, headers=bearer("elsewhere"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden")


@pytest.mark.parametrize(
    ("text", "tags"),
    [
        ("", []), (" , ,", []), ("a", ["a"]), ("a, b. ", ["a", "b"]), ("1. a\n2. b\n", ["a", "b"]),
        ("* a\n* b", ["a", "b"]), ("a; b, a", ["a", "b"]), ("3d, 1girl", ["3d", "1girl"]),
        ("artist:x, a.b", ["artist:x", "a.b"]),
    ],
)  # fmt: skip
def test_tags(text: str, tags: list[str]) -> None:
    assert tags_of(text) == tags


def _streamed(prompt: CaptionPrompt, *texts: str) -> tuple[str, str]:
    """The deltas together, and the whole caption after them."""
    events = CaptionEvents(0, prompt, 0.0)
    last = len(texts) - 1
    data = [events.encode(Chunk(t, 1, 1, "stop" if n == last else None)) for n, t in enumerate(texts)]
    deltas = [json.loads(one.removeprefix(b"data: "))["delta"] for one in data if one]
    return "".join(deltas), json.loads(events.end().removeprefix(b"data: "))["caption"]


@pytest.mark.parametrize(
    ("texts", "caption"),
    [
        (("a", " photo", " of", " a cat"), "a cat"),
        ((" a photo of", " a cat"), "a cat"),
        (("a photo of a cat",), "a cat"),
        (("a photo", " by Ann"), "a photo by Ann"),
        (("a", " photo"), "a photo"),
        (("two", " cats"), "two cats"),
        (("",), ""),
    ],
)
def test_a_repeated_prompt_is_no_part_of_the_caption(texts: tuple[str, ...], caption: str) -> None:
    prompt = CaptionPrompt("a photo of", repeats_prompt=FAMILIES["blip2"].repeats_prompt)
    deltas, whole = _streamed(prompt, *texts)
    assert (deltas.strip(), whole) == (caption, caption)
    assert prompt.caption_json("".join(texts))["caption"] == caption


def test_several_captions_of_one_image() -> None:
    events = CaptionEvents(3, CaptionPrompt("p", num_captions=2), 0.5)
    said = [events.encode(Chunk(text, 1, 7, "stop", index=index)) for index, text in enumerate(("one", "two"))]
    assert [json.loads(event.removeprefix(b"data: "))["choice"] for event in said] == [0, 1]
    whole = json.loads(events.end().removeprefix(b"data: "))
    assert (whole["caption"], whole["index"]) == ("one", 3)
    assert [one["caption"] for one in whole["captions"]] == ["one", "two"]
    assert whole["usage"] == {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
