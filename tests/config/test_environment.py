"""A model's environment: secrets are refused where Ray would log them, and come from where they are kept."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry
from pydantic import ValidationError

from serve_app.checkpoints.load_progress import LoadProgress
from serve_app.config import environment
from serve_app.config.applications import IngressConfig, ModelConfig
from serve_app.config.environment import EnvironmentSource
from serve_app.config.file import read_config_file
from serve_app.errors import ConfigError
from serve_app.metrics.registry import Metrics
from serve_app.replica.replica import start_replica
from serve_app.strict import first_sentence
from tests.fake_hub import FakeHub, serving

TOKEN = "hf_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZaBcDeFgH"
MODEL = {"source": "demo"}


def refusal(config: Any, values: Any) -> str:
    """Both sentences of it: ours, and pydantic's own, which Ray puts into its log and its status."""
    with pytest.raises(ValidationError) as raised:
        config.model_validate(values)
    return f"{first_sentence(raised.value)}\n{raised.value}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HF_TOKEN", TOKEN),
        ("HF_TOKEN", "anything at all"),
        ("hf_token", "x"),
        ("INNOCENT", TOKEN),
        ("HEADERS", f'{{"Authorization": "Bearer {TOKEN}"}}'),
        ("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"),
        ("AWS_SESSION_TOKEN", "IQoJb3JpZ2luX2VjE"),
        ("OPENAI_API_KEY", "sk-proj-0123456789abcdefghij"),
        ("WANDB_API_KEY", "0123456789abcdef0123456789abcdef01234567"),
        ("DB_PASSWORD", "correct horse"),
        ("AZURE_STORAGE_CONNECTION_STRING", "DefaultEndpointsProtocol=https;AccountKey=0123456789"),
        ("HTTPS_PROXY", "http://me:hunter2@proxy.example:3128"),
        ("DATABASE", "postgresql://me:hunter2@db.example/x"),
        ("SESSION", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.c2lnbmF0dXJl"),
        ("CERT", "-----BEGIN RSA PRIVATE KEY-----\nMIIE"),
        ("GIT", "ghp_" + "a1B2" * 9),
        ("KEY_OF_OURS", "sa-" + "a1B2_" * 8),
        ("PGPASSWORD", "x"),
        ("hfToken", "x"),
        ("A", "AKIAIOSFODNN7EXAMPLE"),
        ("MY_TOKENS", "abc"),
        ("STOP_TOKEN", TOKEN),
        ("VLLM_API_KEY", "abc"),
        ("KEY", "abc"),
        ("CACHE_KEY", "v1-0123456789abcdef"),
        ("SORT_KEY", "Xk29pQ"),
        ("DB_PASSWORD", "banana"),
        ("AWS_SECRET_ACCESS_KEY", "/K7MDENG/bPxRfiCYEXAMPLEKEY"),
        ("SECRET", "/hunter2"),
        ("API_KEY", "emptyhanded7"),
        ("X", "q7Zt2Lm9Vx4Rk8Wn3Bp6Ys1Hd5Gf0JcQ"),
    ],
)
def test_what_looks_like_a_secret_is_refused_and_never_repeated(name: str, value: str) -> None:
    told = refusal(ModelConfig, MODEL | {"env": {name: value}})
    assert f"{name} looks like a secret" in told
    assert "env_from" in told
    assert value not in told


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("VLLM_CPU_KVCACHE_SPACE", "1"),
        ("TOKENIZERS_PARALLELISM", "false"),
        ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1"),
        ("HF_TOKEN_PATH", "/run/secrets/hf"),
        ("HF_TOKEN", ""),
        ("MAX_TOKENS", "4096"),
        ("STOP_TOKENS", "a,b"),
        ("AWS_PROFILE", "team-a"),
        ("GOOGLE_APPLICATION_CREDENTIALS", "/etc/gcp/account.json"),
        ("HF_ENDPOINT", "https://hub.example:8443/models"),
        ("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True,max_split_size_mb:512"),
        ("LD_LIBRARY_PATH", "/usr/local/cuda-12.8/lib64:/opt/Lib2/x86_64:/usr/lib/x86_64-linux-gnu"),
        ("COMMIT", "0123456789abcdef0123456789abcdef01234567"),
        ("RUN", "3f2b8a1c-9d4e-4f6a-8b7c-1d2e3f4a5b6c"),
        ("ARCHITECTURE", "Qwen2_5_VLForConditionalGeneration_Eagle3"),
        ("CUDA_VISIBLE_DEVICES", "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"),
        ("CUDA_VISIBLE_DEVICES", "MIG-GPU-1a2b3c4d-5e6f-4a8b-9c1d-2e3f4a5b6c7d"),
        ("CUDA_VISIBLE_DEVICES", "MIG-GPU-8932f937-d72c-4106-c12f-20bd9faed9f6/1/0"),
        ("CUDA_VISIBLE_DEVICES", "MIG-8932f937-d72c-4106-c12f-20bd9faed9f6,MIG-1932f937-d72c-4a06-c1f2-20bd9faed9f6"),
        ("PAD_TOKEN", "<pad>"),
        ("BOS_TOKEN", "<s>"),
        ("EOS_TOKEN", "<|im_end|>"),
        ("MASK_TOKEN", "[MASK]"),
        ("SORT_KEY", "name"),
        ("PARTITION_KEY", "created_at"),
        ("CACHE_KEY", "v1"),
        ("VLLM_API_KEY", "EMPTY"),
        ("OPENAI_API_KEY", "not-needed"),
        ("HF_TOKEN", "<your-token>"),
        ("SSL_KEY", "/etc/ssl/key"),
        ("TLS_KEY", "/home/Me/Keys/mine"),
        ("SIGNING_KEY", "/volumes/keys/signing"),
        ("DB_PASSWORD", "/run/secrets/x"),
        ("MONKEY", "banana"),
        ("MODEL", "/models/llama-sa-finetuned-on-5-million-pictures-v1.0"),
        ("REGION", "ASIA-PACIFIC-SOUTHEAST-1"),
        ("INDEX", "pypi-mirror-internal-2024"),
        ("HF_XET_MODE", "hf_transfer_enabled_everywhere"),
        ("KIND", "task-specific-model-2-with-a-long-name"),
        ("PWD", "/home/serve"),
    ],
)
def test_what_is_none_is_taken(name: str, value: str) -> None:
    assert ModelConfig.model_validate(MODEL | {"env": {name: value}}).env == {name: value}


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"env": f"HF_TOKEN={TOKEN}"}, "env: Input should be a valid dictionary"),
        ({"env": [TOKEN]}, "env: Input should be a valid dictionary"),
        ({"env": {"HF_TOKEN": [TOKEN]}}, "env.HF_TOKEN"),
        ({"evn": {"HF_TOKEN": TOKEN}}, "unknown field 'evn': did you mean 'env'"),
        ({"env_from": {"HF_TOKEN": TOKEN}}, "write {file: PATH} or {variable: NAME}"),
        ({"env_from": {"HF_TOKEN": {"variable": TOKEN}}}, "no variable's name but a secret itself"),
        ({"env_from": {"HF_TOKEN": {"value": TOKEN}}}, "unknown field 'value'"),
        ({"env_from": {"HF_TOKEN": {}}}, "name a file or a variable"),
        ({"env_from": {"HF_TOKEN": {"file": "/a", "variable": "B"}}}, "one of the two"),
        ({"env_from": {"no name": {"file": "/a"}}}, "env_from.no name"),
        ({"env_from": [TOKEN]}, "env_from"),
        ({"env": {"A": "1"}, "env_from": {"A": {"file": "/a"}}}, "A stands in env as well"),
        ({"engine_args": {"hf_token": "anything"}}, "env_from, as {HF_TOKEN"),
        ({"engine_args": {"a": {"b": [TOKEN]}}}, "engine_args: one of them looks like a secret"),
        ({"env": {"HF_TOKEN": TOKEN}, "num_gpus": 1.5, "engin": "vllm"}, "unknown field 'engin'"),
        ({"dtype": TOKEN}, "dtype"),
    ],
)
def test_no_mistake_repeats_a_secret(values: dict[str, Any], sentence: str) -> None:
    told = refusal(ModelConfig, MODEL | values)
    assert sentence in told
    assert TOKEN not in told


def test_a_key_where_its_variable_belongs_is_not_repeated() -> None:
    told = refusal(IngressConfig, {"keys": {"environment": "sa-plain"}})
    assert "keys.environment: String should match pattern" in told
    assert "sa-plain" not in told


@pytest.mark.parametrize("place", ["runtime_env", "ray_actor_options"])
def test_rays_own_way_to_set_variables_is_looked_at_too(tmp_path: Path, place: str) -> None:
    runtime_env = {"env_vars": {"HF_TOKEN": TOKEN}}
    app: dict[str, Any] = {"name": "m", "import_path": "serve_app.app:build_model", "args": MODEL}
    if place == "runtime_env":
        app["runtime_env"] = runtime_env
    else:
        app["deployments"] = [{"name": "Model", place: {"runtime_env": runtime_env}}]
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"applications": [app]}))
    with pytest.raises(ConfigError, match="runtime_env: env_vars: HF_TOKEN looks like a secret") as raised:
        read_config_file(path)
    assert TOKEN not in str(raised.value)


def source(**place: str) -> dict[str, EnvironmentSource]:
    return {"HF_TOKEN": EnvironmentSource(**place)}


def test_a_value_comes_from_a_file_or_the_nodes_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").write_text(f"{TOKEN}\n")
    (tmp_path / "link").symlink_to("data")  # as Kubernetes mounts a Secret
    assert environment.read(source(file=str(tmp_path / "link"))) == {"HF_TOKEN": TOKEN}
    monkeypatch.setenv("TEAM_A", "a")
    monkeypatch.setenv("HF_TOKEN", "before")
    with environment.taken(source(variable="TEAM_A") | {"NEW": EnvironmentSource(variable="HF_TOKEN")}):
        assert (os.environ["HF_TOKEN"], os.environ["NEW"]) == ("a", "before")
    assert os.environ["HF_TOKEN"] == "before"
    assert "NEW" not in os.environ


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "there is no file .*put it on every node"),
        ("folder", "there is no file"),
        ("pipe", "there is no file"),
        (b"", "must hold the value alone"),
        (b" \n", "must hold the value alone"),
        (b"a\0b", "must hold the value alone"),
        (b"x" * 65_537, "in at most 65,536 bytes"),
        (b"\xff\xfe", "isn't text in UTF-8"),
    ],
)
def test_a_file_that_holds_no_value(tmp_path: Path, content: bytes | str | None, sentence: str) -> None:
    path = tmp_path / "secret"
    if content == "folder":
        path.mkdir()
    elif content == "pipe":
        os.mkfifo(path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"env_from: HF_TOKEN: .*{sentence}"):
        environment.read(source(file=str(path)))


def test_a_variable_that_the_node_lacks() -> None:
    with pytest.raises(ConfigError, match="env_from: HF_TOKEN: this node's environment has no 'NOT_SET_ANYWHERE'"):
        environment.read(source(variable="NOT_SET_ANYWHERE"))


REPLICA = """
import asyncio, multiprocessing, os, sys
import serve_app.app  # as in a replica's process, where Ray imports it before anything of ours runs
from prometheus_client import CollectorRegistry
from serve_app.config.applications import ModelConfig
from serve_app.errors import ConfigError
from serve_app.checkpoints.load_progress import LoadProgress
from serve_app.metrics.registry import Metrics
from serve_app.replica.replica import start_replica

async def main():
    config = ModelConfig.model_validate_json(sys.argv[1])
    try:
        await start_replica('m', config, Metrics(CollectorRegistry(), ['m']), LoadProgress('m'))
    except ConfigError as exc:
        print(exc)
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        print('child', await asyncio.to_thread(pool.apply, os.getenv, ('HF_TOKEN',)))

if __name__ == '__main__':
    asyncio.run(main())
"""


def replica(config: dict[str, Any], folder: Path) -> str:
    """What a process that starts such a replica, and then a child, says."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environ |= {"NO_PROXY": "127.0.0.1", "HF_HOME": str(folder / "home")}
    (folder / "replica.py").write_text(REPLICA)
    command = [sys.executable, str(folder / "replica.py"), json.dumps(config)]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=120)
    assert done.returncode == 0, done.stderr
    assert TOKEN not in re.sub("child .*", "", done.stdout + done.stderr)
    return done.stdout


@pytest.mark.engine
def test_the_hub_and_child_processes_see_what_env_from_names(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    with serving(FakeHub()) as hub:
        (tmp_path / "hub").write_text(hub.url)  # read by the hub's client at its import
        places = {"HF_TOKEN": {"file": str(tmp_path / "token")}, "HF_ENDPOINT": {"file": str(tmp_path / "hub")}}
        told = replica({"source": "tiny/unknown", "engine": "transformers", "env_from": places}, tmp_path)
    assert "has no such model or shows it only to others" in told
    assert f"Bearer {TOKEN}" in hub.tokens
    assert f"child {TOKEN}" in told


async def test_a_replica_whose_secret_is_missing_says_so(tmp_path: Path) -> None:
    places = {"HF_TOKEN": {"file": str(tmp_path / "missing")}}
    config = ModelConfig.model_validate({"source": "none", "engine": "scripted", "env_from": places})
    with pytest.raises(ConfigError, match="model 'm': env_from: HF_TOKEN: there is no file"):
        await start_replica("m", config, Metrics(CollectorRegistry(), ["m"]), LoadProgress("m"))


def test_ranks_on_other_nodes_get_it_from_the_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    ray_env = pytest.importorskip("vllm.ray.ray_env")
    from serve_app.engines.vllm.nodes import point_to_ray

    places = {"AWS_SECRET_ACCESS_KEY": {"variable": "TEAM_A"}, "SOME_TOKEN": {"file": "/run/secrets/x"}}
    monkeypatch.setenv("VLLM_RAY_EXTRA_ENV_VARS_TO_COPY", "ONE_MORE")
    point_to_ray(ModelConfig.model_validate({"source": "a/model", "tensor_parallel_size": 2, "env_from": places}))
    assert {"ONE_MORE", *places} <= ray_env.get_env_vars_to_copy()
