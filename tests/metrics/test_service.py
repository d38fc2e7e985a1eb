"""The sidecar's numbers against what a client measured, and a real Prometheus that scrapes them."""

import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.drawings import b64, png
from tests.service import RunningService, free_port

pytestmark = pytest.mark.cluster


def summary_of(client: httpx.Client, model: str) -> dict[str, Any]:
    row: dict[str, Any] = client.get("/metrics/summary").json()["models"].get(model)
    return row or {"requests": 0, "failures": {}, "tokens": {"generated": 0, "prompt": 0}}


def wait_for_requests(client: httpx.Client, model: str, num_requests: int) -> dict[str, Any]:
    """The summary once it has heard of that many requests: processes report every second."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        row = summary_of(client, model)
        if row["requests"] >= num_requests:
            time.sleep(2)  # the replica reports apart from the ingress
            return summary_of(client, model)
        time.sleep(0.3)
    raise AssertionError(f"the summary never came to {num_requests} requests: {row}")


def sums_of(client: httpx.Client) -> dict[str, float]:
    """The script model's `_sum` and `_count` series, over all replicas there ever were in the text."""
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            if sample.labels.get("model") == "script" and sample.name.endswith(("_sum", "_count")):
                sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    return sums


def test_numbers_agree_with_the_clients(client: httpx.Client) -> None:
    before = wait_for_requests(client, "script", 0)
    sums_before = sums_of(client)
    body = {
        "model": "script", "stream": True, "stream_options": {"include_usage": True},
        "messages": [{"role": "user", "content": "!tokens 40"}],
    }  # fmt: skip
    num_tokens, first_s, gaps_s = 0, [], []
    for _ in range(10):
        started_at = time.monotonic()
        with client.stream("POST", "/v1/chat/completions", json=body) as response:
            times = []
            for line in response.iter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line.removeprefix("data: "))
                if event["choices"] and event["choices"][0]["delta"].get("content"):
                    times.append(time.monotonic())
                num_tokens += (event["usage"] or {}).get("completion_tokens", 0)
        first_s.append(times[0] - started_at)
        gaps_s += list(np.diff(times))
    bad = client.post("/v1/chat/completions", json=body | {"temperature": 9})
    assert bad.status_code == 400
    after = wait_for_requests(client, "script", before["requests"] + 10)
    assert after["requests"] - before["requests"] == 10
    assert after["tokens"]["generated"] - before["tokens"]["generated"] == num_tokens >= 400
    sums = {name: value - sums_before.get(name, 0.0) for name, value in sums_of(client).items()}
    num_gaps = sums["serve_app_inter_token_seconds_count"]
    assert num_gaps == num_tokens - 10  # each answer's first token has no token before it
    assert sums["serve_app_inter_token_seconds_sum"] / num_gaps == pytest.approx(np.mean(gaps_s), rel=0.5, abs=0.005)
    # The client's first token comes later than the service's: a connection and two more processes lie between.
    assert sums["serve_app_time_to_first_token_seconds_count"] == 10
    assert 0 < sums["serve_app_time_to_first_token_seconds_sum"] < sum(first_s) * 1.1
    assert after["time_to_first_token_seconds"]["last_60s"]["p50"] > 0
    assert after["tokens_per_second"]["last_60s"] > 0


def test_failures_are_counted_by_code(client: httpx.Client) -> None:
    before = summary_of(client, "demo")["failures"].get("invalid_image", 0)
    assert client.post("/v1/captions", json={"image": b64(b"no image")}).status_code == 400
    deadline = time.monotonic() + 20
    while summary_of(client, "demo")["failures"].get("invalid_image", 0) == before:
        assert time.monotonic() < deadline
        time.sleep(0.3)


def test_a_real_prometheus_scrapes_them(service: RunningService, client: httpx.Client, tmp_path: Path) -> None:
    prometheus = shutil.which("prometheus")
    if prometheus is None:
        pytest.skip("prometheus isn't installed (Debian: apt-get install prometheus)")
    assert client.post("/v1/captions", json={"image": b64(png("red", "circle"))}).status_code == 200
    port = free_port()
    target = {"targets": [service.url.removeprefix("http://")]}
    config = {
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [{"job_name": "s", "static_configs": [target]}],
    }
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    process = subprocess.Popen(
        [prometheus, "--config.file", "prometheus.yml", "--storage.tsdb.path", "data",
         "--web.listen-address", f"127.0.0.1:{port}"],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        found = _query(f"http://127.0.0.1:{port}", 'serve_app_requests_total{model="demo",outcome="ok"}')
        assert found["metric"]["replica"]
        assert float(found["value"][1]) >= 1
        expression = "histogram_quantile(0.5, sum by (le) (serve_app_time_to_first_token_seconds_bucket))"
        assert float(_query(f"http://127.0.0.1:{port}", expression)["value"][1]) > 0
    finally:
        process.terminate()
        process.wait(timeout=20)


def _query(url: str, expression: str) -> dict[str, Any]:
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline:
        try:
            answer = httpx.get(f"{url}/api/v1/query", params={"query": expression}, timeout=5, trust_env=False)
            results = answer.json()["data"]["result"] if answer.status_code == 200 else []
        except httpx.TransportError:
            results = []
        if results:
            row: dict[str, Any] = results[0]
            return row
        time.sleep(0.5)
    raise AssertionError(f"Prometheus never had {expression}")
