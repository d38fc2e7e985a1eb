"""How the serving benchmark starts its systems: settings alike, ports apart, our config valid."""

import json
from pathlib import Path

import pytest
import yaml

from benchmarks.serving import engine
from benchmarks.serving.client import Calls
from benchmarks.serving.images import ImageShelf
from benchmarks.serving.public_client import flags
from benchmarks.serving.systems import (
    PORTS_EACH,
    REFERENCE,
    SCRIPTED,
    SYSTEMS,
    Place,
    models_of,
    our_config,
    port_of,
)
from benchmarks.serving.workloads import CHAT, OTHER_CHAT, WORKLOADS, ImageKind, Load
from serve_app.config.file import model_names, read_config_file


def place(folder: Path, *models: str) -> Place:
    checkpoints = {model: folder / model for model in models or (CHAT, OTHER_CHAT)}
    return Place(18100, folder, checkpoints, {CHAT: "http://127.0.0.1:18000"}, ("127.0.0.1:18990",))


def test_our_config_is_one_that_this_service_takes(tmp_path: Path) -> None:
    path = tmp_path / "serve_config.yaml"
    path.write_text(yaml.safe_dump(our_config(place(tmp_path))))
    values = read_config_file(path)
    assert model_names(values) == [CHAT, OTHER_CHAT, SCRIPTED]
    lanes = {app["name"]: app["route_prefix"] for app in values["applications"]}
    assert lanes[CHAT] == f"/models/{CHAT}"


def test_the_two_lanes_are_addresses_of_one_service(tmp_path: Path) -> None:
    common, direct = SYSTEMS["serve_app"], SYSTEMS["serve_app_direct"]
    recipe = common.cook(place(tmp_path))
    assert common.service == direct.service
    assert common.address(recipe, CHAT) == "http://127.0.0.1:18100"
    assert direct.address(recipe, CHAT) == "http://127.0.0.1:18100/models/chat-a"


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_says_what_it_starts_and_where_its_models_are(name: str, tmp_path: Path) -> None:
    recipe = SYSTEMS[name].cook(place(tmp_path))
    assert recipe.commands
    assert CHAT in recipe.addresses
    assert all(address.startswith("http://127.0.0.1:18") for address in recipe.addresses.values())


def test_engine_settings_are_the_same_in_every_spelling(tmp_path: Path) -> None:
    values = our_config(place(tmp_path))["applications"][0]["args"]
    ours = {**values["engine_args"], "dtype": values["dtype"], "max_model_len": values["max_context_tokens"]}
    SYSTEMS["ray_serve_llm"].cook(place(tmp_path))
    peers = json.loads((tmp_path / "ray_llm.json").read_text())["llm_configs"][0]["engine_kwargs"]
    assert ours == peers == engine.ENGINE_ARGS
    given = engine.vllm_flags()
    assert "--no-enable-prefix-caching" in given
    assert given[given.index("--max-num-seqs") + 1] == str(engine.MAX_NUM_SEQS)
    assert max(load.num_clients for one in WORKLOADS.values() for load in one.loads) <= engine.MAX_NUM_SEQS


def test_one_model_where_a_peer_takes_no_more(tmp_path: Path) -> None:
    assert set(SYSTEMS["ray_serve_llm_direct"].cook(place(tmp_path)).addresses) == {CHAT}
    assert "two_models" not in SYSTEMS["ray_serve_llm_direct"].abilities
    assert len(SYSTEMS[REFERENCE].cook(place(tmp_path)).commands) == 2
    assert all(len(models_of(workload.group)) > 1 for workload in WORKLOADS.values())


def test_services_have_ports_of_their_own() -> None:
    ports = [port_of(service) for service in {system.service for system in SYSTEMS.values()}]
    assert len(set(ports)) == len(ports)
    assert all(18000 <= port <= 19000 - PORTS_EACH for port in ports)


def test_the_public_client_waits_for_nobody_where_requests_come_by_themselves(tmp_path: Path) -> None:
    load = WORKLOADS["chat_c64"].load
    closed = flags(load, "http://127.0.0.1:18000", tmp_path, tmp_path, 384, None)
    assert closed[closed.index("--max-concurrency") + 1] == "64"
    assert "--ignore-eos" in closed
    opened = flags(load, "http://127.0.0.1:18000", tmp_path, tmp_path, 384, 12.5)
    assert opened[opened.index("--request-rate") + 1] == "12.5000"
    assert "--max-concurrency" not in opened


def test_calls_have_a_fixed_length_and_their_own_prompt() -> None:
    calls = Calls(Load(CHAT, 2, 4), "http://127.0.0.1:18000", ["one", "two"], None).take(3)
    bodies = [json.loads(call.body) for call in calls]
    assert [body["messages"][0]["content"] for body in bodies] == ["one", "two", "one"]
    assert {(body["max_tokens"], body["ignore_eos"], body["stream"]) for body in bodies} == {(64, True, True)}
    assert {call.num_wanted for call in calls} == {64}


def test_a_peer_that_wants_a_key_gets_one_made_for_this_run(tmp_path: Path) -> None:
    key, other = (SYSTEMS["litellm"].cook(place(tmp_path)).key for _ in range(2))
    assert key is not None
    assert key != other
    (call,) = Calls(Load(CHAT, 1, 1), "http://127.0.0.1:18000", ["one"], None, key=key).take(1)
    assert call.headers["authorization"] == f"Bearer {key}"
    assert key not in (tmp_path / "litellm.yaml").read_text()


def test_fields_that_a_system_refuses_are_left_out() -> None:
    (call,) = Calls(Load(CHAT, 1, 1), "http://127.0.0.1:18000", ["one"], None, takes_vllm_fields=False).take(1)
    assert not {"ignore_eos", "stream_options"} & set(json.loads(call.body))


def test_images_go_as_data_as_files_and_by_address(tmp_path: Path) -> None:
    (tmp_path / "0.3mp-0.jpg").write_bytes(b"\xff\xd8\xffjpeg")
    shelf = ImageShelf(tmp_path, "http://127.0.0.1:18990")

    def body(way: str) -> bytes:
        load = Load("demo", 1, 1, 48, False, ImageKind("0.3mp", way))  # type: ignore[arg-type]  # a Way
        (call,) = Calls(load, "http://127.0.0.1:18000", [], shelf).take(1)
        assert call.num_wanted is None
        return call.body

    assert b"data:image/jpeg;base64,/9j/" in body("data_uri")
    assert b"http://127.0.0.1:18990/0.3mp-0.jpg" in body("url")
    assert b"\xff\xd8\xffjpeg\r\n--serving-bench--" in body("upload")
