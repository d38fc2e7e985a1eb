"""Ray Serve LLM as its documentation starts it, until it is told to end. Runs in the peer's environment alone.

`python ray_llm_server.py CONFIG.json`, with `{"port": …, "llm_configs": […]}`. Switches such as HAProxy and direct
streaming are environment variables.
"""

import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

NUM_CPUS = 16  # in Ray's bookkeeping: its ingress alone asks for two, and a model for one


def main() -> None:
    import ray
    from ray import serve
    from ray.serve.llm import build_openai_app

    given: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    ray.init(address="local", num_cpus=NUM_CPUS)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": given["port"]})
        serve.run(build_openai_app({"llm_configs": given["llm_configs"]}), route_prefix="/")
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        pass
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main()
