"""Our rules in the configuration that Ray Serve writes for HAProxy: text in, text out.

A request at the common address whose model can be told from its first bytes gets the path of that model's direct
lane, so that Ray Serve's own rules choose its backend. Which names there are is the ingress's to say; `lanes.lua`
asks it. All that can't be told goes to the ingress as before.
"""

import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from serve_app.dialects.tgi.dialect import TGI
from serve_app.errors import BodyTooSlow
from serve_app.exchange.dialect import SERVICE, Dialect
from serve_app.exchange.lane_secret import DRAWN_HEADER, LANES_PATH, SECRET_HEADER

# The paths whose JSON body or form names the model, and those that are told by `X-Model` or `?model=`.
BODY_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/captions")
HEAD_PATHS = ("/", "/generate", "/generate_stream", "/invocations", "/tokenize", "/chat_tokenize")

_FIRST_LOOK, _SECOND_LOOK = 2_048, 61_440  # bytes of a body; most clients send the model's name first
_BUFFER_BYTES = 65_536  # for the second look, and what HAProxy adds
_BODY_TIMEOUT_S = 60  # as the ingress's `body_timeout_s`
_RETRY = (
    "retry-on conn-failure empty-response"  # elsewhere, where a replica dies and the buffer has the whole request
)
_BEFORE_BACKENDS = "    # Per-backend path ACLs"  # a comment: what stands before it runs before the choice
_THE_CHOICE = "    # Static routing based on path prefixes"  # another: the choice comes after it
_AFTER_FRONTEND = "\nbackend default_backend\n"
# The same replicas, chosen by what they have in cache. Ray Serve counts a backend's requests under this name too.
_BY_CACHE = "-via-ingress-request-router"
_WEIGHT = 128  # of a server, which has sixteen places on the ring for each; with few its share would be uneven


@dataclass(frozen=True, slots=True)
class Backend:
    """An application as Ray Serve's configuration has it. `lines` are its section's, without the first."""

    name: str
    prefix: str
    lines: tuple[str, ...]
    has_own_choice: bool  # by a request router of Ray Serve's

    @property
    def servers(self) -> list[str]:
        """The names of its replicas, without the one in reserve."""
        return [line.split()[1] for line in self.lines if _is_replica(line)]

    @property
    def has_choice(self) -> bool:
        return len(self.servers) > 1 and not self.has_own_choice


class UnusableConfiguration(ValueError):
    """No rules can be added."""


def with_lanes(config: str, lua: str, secret: str) -> tuple[str, list[Backend]]:
    """The configuration with our rules, and the lanes that they lead to.

    `lua` is the path of `lanes.lua`, and our processes know HAProxy by `secret`. Raises `UnusableConfiguration`.
    """
    bind = re.search(r"^frontend http_frontend\n    bind (\S*):(\d+)$", config, re.MULTILINE)
    places = (_BEFORE_BACKENDS, _THE_CHOICE, _AFTER_FRONTEND)
    if bind is None or any(config.count(place) != 1 for place in places) or not config.startswith("global\n"):
        raise UnusableConfiguration("Ray Serve writes HAProxy's configuration in another way")
    lanes = [backend for backend in _backends(config) if backend.prefix != "/" and backend.servers]
    host = bind[1] if bind[1] not in ("", "*", "0.0.0.0", "::") else "127.0.0.1"
    host = f"[{host}]" if ":" in host else host
    config = re.sub(
        r"^    tune\.bufsize (\d+)$",
        lambda line: f"    tune.bufsize {max(int(line[1]), _BUFFER_BYTES)}",
        config,
        flags=re.MULTILINE,
    )
    for lane in lanes:
        config = config.replace(f"\nbackend {lane.name}\n", f"\nbackend {lane.name}\n    {_RETRY}\n", 1)
    config = config.replace(
        "global\n", f"global\n    lua-load {_quoted(lua)} {host} {bind[2]} {secret} {_SECOND_LOOK}\n", 1
    )
    by_cache = [lane for lane in lanes if lane.has_choice]
    config = config.replace(_AFTER_FRONTEND, "".join(map(_chosen_by_cache, by_cache)) + _AFTER_FRONTEND)
    config = config.replace(_THE_CHOICE, "".join(map(_choice, by_cache)) + _THE_CHOICE)
    return config.replace(_BEFORE_BACKENDS, _rules(lanes, secret) + _BEFORE_BACKENDS), lanes


def _backends(config: str) -> list[Backend]:
    prefixes = dict(re.findall(r"^    acl is_(http-\S+) path (\S+)$", config, re.MULTILINE))
    backends = []
    for section in re.split(r"^(?=backend )", config, flags=re.MULTILINE):
        head = re.match(r"backend (\S+)\n", section)
        if head and head[1] in prefixes:
            lines = takewhile(lambda line: not line.strip() or line.startswith(" "), section.splitlines()[1:])
            has_own_choice = f"backend {head[1]}{_BY_CACHE}\n" in config
            stripped = tuple(line.strip() for line in lines if line.strip())
            backends.append(Backend(head[1], prefixes[head[1]], stripped, has_own_choice))
    return backends


def _is_replica(line: str) -> bool:
    return line.startswith("server ") and not line.endswith(" backup")


def _rules(lanes: Sequence[Backend], secret: str) -> str:
    named, unnamed = "{ var(txn.sa_name) -m found }", "METH_POST sa_body !sa_form !{ var(txn.sa_name) -m found }"
    look = "req.body,json_query('$.model')"
    lines = [
        "# serve_app: a request that names its model goes straight to that model's replicas",
        f"http-request del-header {DRAWN_HEADER}",
        f"http-request del-header {SECRET_HEADER} unless {{ req.hdr({SECRET_HEADER}) -m str {secret} }}",
        f"http-request set-log-level silent if {{ path {LANES_PATH} }}",  # else two requests a second, in every count
        f"acl sa_body path {' '.join(BODY_PATHS)}",
        f"acl sa_head path {' '.join(HEAD_PATHS)}",
        "acl sa_form req.hdr(content-type),lower -m beg multipart/form-data",
        f"http-request set-var-fmt(txn.sa_too_slow) {_too_slow(SERVICE)} if METH_POST sa_body",
        f"http-request set-var-fmt(txn.sa_too_slow) {_too_slow(TGI)} if METH_POST sa_head",
        "http-error status 408 content-type application/json lf-string %[var(txn.sa_too_slow)]",
        # at the other paths only to see, from then on, when the client leaves
        f"http-request wait-for-body time {_BODY_TIMEOUT_S}s at-least {_FIRST_LOOK} if METH_POST sa_body",
        f"http-request wait-for-body time {_BODY_TIMEOUT_S}s at-least {_FIRST_LOOK} if METH_POST sa_head",
        f"http-request set-var(txn.sa_name) {look} if METH_POST sa_body",
        "http-request lua.serve_app_form if METH_POST sa_body sa_form",
        f"http-request wait-for-body time {_BODY_TIMEOUT_S}s at-least {_SECOND_LOOK} if {unnamed}",
        f"http-request set-var(txn.sa_name) {look} if {unnamed}",
        "http-request set-var(txn.sa_name) url_param(model),url_dec if METH_POST sa_head",
        "http-request set-var(txn.sa_name) req.fhdr(x-model) if METH_POST sa_head { req.fhdr(x-model) -m found }",
        f"http-request lua.serve_app_lane if {named}",
        f'http-request set-header {DRAWN_HEADER} "{secret} %[var(txn.sa_name)] %[var(txn.sa_drawn)]" '
        "if { var(txn.sa_drawn) -m found }",
    ]
    if with_choice := [lane.name for lane in lanes if lane.has_choice]:
        is_by_cache = "METH_POST sa_has_choice { var(txn.sa_balancing) -m str affinity }"
        lines += [
            f"acl sa_has_choice var(txn.sa_lane) -m str {' '.join(with_choice)}",
            f"http-request wait-for-body time {_BODY_TIMEOUT_S}s at-least {_SECOND_LOOK} if {is_by_cache}",
            f"http-request lua.serve_app_key if {is_by_cache}",
        ]
    for lane in lanes:
        lines += [f"acl sa_up_{lane.name} srv_is_up({lane.name}/{server})" for server in lane.servers]
        lines.append(f"http-request set-path {lane.prefix}%[path] if {_is_chosen(lane)}")
    return "".join(f"    {line}\n" for line in lines)


def _is_chosen(lane: Backend) -> str:
    return f"{{ var(txn.sa_lane) -m str {lane.name} }} sa_up_{lane.name}"


def _choice(lane: Backend) -> str:
    return f"    use_backend {lane.name}{_BY_CACHE} if {_is_chosen(lane)} {{ var(txn.sa_key) -m found }}\n"


def _most_load(num_servers: int) -> int:
    """Percent of the mean load, above which a replica is passed over.

    Of few replicas one must not get all: of two, three quarters. Of four, 150 would lose an eighth of the hits.
    """
    return min(200, 100 + 25 * num_servers)


def _chosen_by_cache(lane: Backend) -> str:
    """The backend whose requests have a key: as the lane's own, with checks of its own too.

    Were it to follow the lane's (`track`), a replica that died would stay in the ring until the next of those checks,
    and where the others have as much as they may, retries would go to it again: of 2,547 requests 83 were lost so.
    """
    ids: dict[str, int] = {}  # a server's places follow from its id, which HAProxy takes from the order of the lines
    for name in sorted(lane.servers):
        id = zlib.crc32(name.encode()) % (2**31 - 2) + 1
        while id in ids.values():
            id += 1
        ids[name] = id
    lines = [
        f"backend {lane.name}{_BY_CACHE}",
        _RETRY,
        "balance hash var(txn.sa_key)",
        "hash-type consistent",
        f"hash-balance-factor {_most_load(len(lane.servers))}",
        *(f"{line} weight {_WEIGHT} id {ids[line.split()[1]]}" if _is_replica(line) else line for line in lane.lines),
    ]
    return "\n" + "\n    ".join(lines)


def _too_slow(dialect: Dialect) -> str:
    return _quoted(json.dumps(dialect.error_json(BodyTooSlow.after(_BODY_TIMEOUT_S))))


def _quoted(text: str) -> str:
    """As one word of HAProxy's configuration."""
    return "'" + text.replace("'", "'\\''") + "'"
