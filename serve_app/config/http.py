"""What each process that serves HTTP is configured with, an ingress or a model's own lane: limits, keys, images.

Imports no Ray, no torch, no engine. Units stand in names; each default exists once, here.
"""

import hashlib
import ipaddress
import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from serve_app.strict import Strict

MAX_IMAGES = 1000  # of one request, whatever a config says: each is looked at before they are counted

ColorValue = Annotated[int, Field(ge=0, le=255)]


def bare_hosts(hosts: tuple[str, ...]) -> tuple[str, ...]:
    """In lower case. Raises `ValueError` about one that is an address of a page, or anything else."""
    for host in hosts:
        if not re.fullmatch(r"((\*\.)?[A-Za-z0-9_-][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?", host):
            raise ValueError(f"'{host}' is no host: write example.com, example.com:8080 or *.example.com")
    return tuple(host.lower() for host in hosts)


def _own_hosts(hosts: tuple[str, ...]) -> tuple[str, ...]:
    return (*bare_hosts(tuple(host for host in hosts if host != "*")), *(host for host in hosts if host == "*"))


# The names under which a service without keys answers, beside addresses and names without a dot; `*` is all.
AllowedHosts = Annotated[tuple[str, ...], AfterValidator(_own_hosts)]


class ImageConfig(Strict):
    """What images are accepted, in bytes, pixels and seconds, and from where.

    `url_policy`: `public` fetches from public addresses and from what is listed, `listed` only from what is listed,
    `none` fetches nothing. Listed are `allowed_hosts` (`host`, `host:port`, `*.example.com`), whatever their names
    resolve to, and `allowed_networks` (CIDR), whatever name leads there.
    """

    max_image_bytes: int = Field(20_000_000, ge=1)
    max_image_pixels: int = Field(50_000_000, ge=1)
    max_edge_px: int = Field(2048, ge=16)
    fetch_timeout_s: float = Field(10.0, gt=0)
    max_redirects: int = Field(3, ge=0)
    max_fetches: int = Field(64, ge=1)  # connections at once; each may hold `max_image_bytes`
    max_fetches_per_host: int = Field(8, ge=1)
    fetch_cache_bytes: int = Field(64_000_000, ge=0)  # 0: nothing is kept
    fetch_cache_s: float = Field(60.0, ge=0, allow_inf_nan=False)
    url_policy: Literal["public", "listed", "none"] = "public"
    allowed_hosts: tuple[str, ...] = ()
    allowed_networks: tuple[str, ...] = ()
    background: tuple[ColorValue, ColorValue, ColorValue] = (255, 255, 255)
    user_agent: str = Field("serve_app (+image fetcher)", pattern=r"^[ -~]+$")
    num_threads: int = Field(2, ge=1)

    @field_validator("allowed_hosts")
    @classmethod
    def _hosts_are_bare(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        return bare_hosts(hosts)

    @field_validator("allowed_networks")
    @classmethod
    def _networks_parse(cls, networks: tuple[str, ...]) -> tuple[str, ...]:
        for network in networks:
            ipaddress.ip_network(network)
        return networks

    @model_validator(mode="after")
    def _something_is_listed(self) -> Self:
        if self.url_policy == "listed" and not (self.allowed_hosts or self.allowed_networks):
            raise ValueError(
                "url_policy is 'listed' and nothing is: name hosts in allowed_hosts or networks in allowed_networks, "
                "or set url_policy to 'none'"
            )
        return self


class KeysConfig(Strict):
    """Who may ask: API keys from a file, from an environment variable, or from both. With neither, everybody may.

    `file` holds `keys:`, a list of entries as `serve-app key` makes them; it is looked at every `reload_s` seconds
    and may change at any time. `environment` names a variable with plain keys, separated by commas or white space:
    each may do everything, without limits. A variable that is set and holds no key is a mistake, not an open door.
    """

    file: str | None = Field(None, min_length=1)
    environment: str = Field("SERVE_APP_API_KEYS", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    reload_s: float = Field(2.0, ge=0, allow_inf_nan=False)


class AdmissionConfig(Strict):
    """How many requests, and how many tokens of their prompts by a rough count, may wait for each model.

    Counted in each process that serves HTTP. What goes beyond is told at once to come back later.
    """

    max_waiting_requests: int = Field(1024, ge=0)
    max_waiting_tokens: int = Field(1_000_000, ge=1)


class HttpConfig(Strict):
    """What whoever serves HTTP, the ingress or a model's own lane, takes and keeps for one request.

    `request_timeout_s` is the most a request may take, from its arrival to its last byte; a client may ask for less.
    Its body must be there within `body_timeout_s`: whoever sends it drop by drop keeps a place from others.
    `max_unsent_bytes` bounds what is kept of a streamed answer for a client that reads slower than it is made; one
    that has nothing to say for `keep_alive_s` sends a comment. What is made within `write_interval_s` of a write
    goes with the next one; by default all goes at once behind HAProxy, and 20 times a second behind Ray Serve's own
    proxy, for which each piece is dear.
    Without keys it answers to `allowed_hosts`, addresses and names without a dot, and to no other site's pages.
    `cors_origins` are the web pages' origins whose scripts may call the service from a browser; `*` is all.
    `default_model_names` are what clients send that know no name, as those of a server with one model do: they mean
    the default, unless a model is really called that.
    """

    request_timeout_s: float = Field(300.0, gt=0, allow_inf_nan=False)
    max_body_bytes: int = Field(32_000_000, ge=1)
    body_timeout_s: float = Field(60.0, gt=0)
    max_header_bytes: int = Field(32_000, ge=1)
    admission: AdmissionConfig = AdmissionConfig()
    allowed_hosts: AllowedHosts = ()
    cors_origins: tuple[str, ...] = ()
    max_images_per_request: int = Field(16, ge=1, le=MAX_IMAGES)
    max_unsent_bytes: int = Field(4_000_000, ge=1)
    keep_alive_s: float = Field(15.0, gt=0)
    write_interval_s: float | None = Field(None, ge=0, le=1)
    default_model_names: tuple[str, ...] = ("tgi", "dummy")
    images: ImageConfig = ImageConfig()
    keys: KeysConfig = KeysConfig()

    @property
    def fingerprint(self) -> str:
        """The same for whoever answers HTTP by the same rules."""
        rules = self.model_dump_json(include=set(HttpConfig.model_fields))
        return hashlib.sha256(rules.encode()).hexdigest()[:16]
