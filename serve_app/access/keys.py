"""API keys: who sends a request, and what that client may do. Keys come from a file, a variable, or both.

Knows nothing of HTTP but the value of one header, and nothing of Ray. A key itself is never kept, logged or put
into an error; its SHA-256 is what is kept, and the hash's first 12 hex digits are what may be shown.
"""

import hashlib
import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from serve_app.access.key_file import (
    DEFAULT_PRIORITY as DEFAULT_PRIORITY,  # also for requests without a key: admission asks here
)
from serve_app.access.key_file import KeyEntry, parse_keys
from serve_app.config.http import KeysConfig
from serve_app.errors import ConfigError, InvalidKey

logger = logging.getLogger("serve_app")

Run = Callable[[Callable[[], None]], None]

_NUM_KEY_BYTES = 32  # 256 bits
_LONGEST_HEADER = 512  # characters; a key of ours makes it 53
_BEARER = re.compile(r"bearer ([!-~]+)", re.IGNORECASE | re.ASCII)
_SEND = "send Authorization: Bearer YOUR_KEY"
_READABLE_BY_OTHERS = 0o077


@dataclass(frozen=True, slots=True)
class Key:
    """Who sends a request. Limits are for a minute, None means no limit, and a higher `priority` goes first.

    `id` is the first 12 hex digits of the key's SHA-256.
    """

    name: str
    id: str
    models: frozenset[str] | None = None  # None: all
    is_admin: bool = False
    priority: int = DEFAULT_PRIORITY
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    images_per_minute: int | None = None

    def may_use(self, model: str) -> bool:
        """Whether it may use the model of that name, as the client spells it."""
        return self.models is None or model in self.models


def in_a_thread(work: Callable[[], None]) -> None:
    """Reading ten thousand keys takes a second, and a file server may take longer, so no request waits for it."""
    threading.Thread(target=work, name="keys", daemon=True).start()


class Keyring:
    """The valid keys. A changed file takes effect within `reload_s` seconds and the time to read it.

    It is asked by one thread; `run` has the file looked at by another. How long a key takes to be looked up depends
    neither on how many there are nor on which it is.

    Whether there are keys at all is the configuration's to say, at the start: a file that loses all its keys
    closes the service. A file that breaks or vanishes later changes nothing, and the log says so once.
    Construction raises `ConfigError` where the file is missing or wrong, or the variable is set and without a key.
    """

    def __init__(
        self, config: KeysConfig, clock: Callable[[], float] = time.monotonic, run: Run = in_a_thread
    ) -> None:
        self._path = None if config.file is None else Path(config.file).expanduser().absolute()
        self._variable = config.environment
        self._given = _entries_of_variable(config.environment)
        self._reload_s = config.reload_s
        self._clock = clock
        self._run = run
        self._is_looking = False
        self._next_look_s = clock() + config.reload_s
        self._version: tuple[int, ...] | None = None
        self._unreadable = ""  # why the file can't be read now, for the log
        self._has_warned_of_readers = False
        self._keys = _keys_by_digest(self._given)
        if self._path is not None:
            self._begin(self._path)

    @property
    def is_open(self) -> bool:
        """Whether everybody may use the service, because neither a file nor the variable is configured."""
        return self._path is None and not self._given

    def key_of(self, authorization: str | None) -> Key | None:
        """The key of an Authorization header; None if the service is open, whatever the header says.

        Raises `InvalidKey` where the header is missing, malformed or too long, or the key is unknown.
        """
        if self.is_open:
            return None
        self._look_if_due()
        # Only hashes are compared. The time of a comparison could reveal a hash, from which nobody can make a key.
        key = self._keys.get(_digest(_bearer_key(authorization)))
        if key is None:
            raise InvalidKey("this API key isn't known here: check it, or ask whoever runs this service for one")
        return key

    def _begin(self, path: Path) -> None:
        try:
            self._read(path)
        except OSError as exc:
            raise ConfigError(
                f"keys: {path} can't be read ({exc.strerror}): `serve-app key NAME --file {path}` makes such a file"
            ) from exc

    def _look_if_due(self) -> None:
        path = self._path
        if path is not None and not self._is_looking and (now_s := self._clock()) >= self._next_look_s:
            self._next_look_s = now_s + self._reload_s
            self._is_looking = True
            try:
                self._run(lambda: self._look_beside(path))
            except (
                RuntimeError
            ) as exc:  # the process can have no further thread now, which is no reason to refuse anybody
                self._is_looking = False
                logger.error("keys: %s can't be looked at (%s): the keys from before stay good", path, exc)

    def _look_beside(self, path: Path) -> None:
        try:
            self._look(path)
        finally:
            self._is_looking = False

    def _look(self, path: Path) -> None:
        """Read the file again if it changed. If anything is wrong with it, the earlier keys stay."""
        try:
            if _version(os.stat(path)) != self._version:
                self._read(path)
                logger.info("%s was read again: %d keys", path, len(self._keys))
            self._unreadable = ""
        except OSError as exc:  # tried again at each look, and logged once while it lasts
            reason = exc.strerror or type(exc).__name__
            if reason != self._unreadable:
                logger.error("keys: %s can't be read (%s): the keys from before stay good", path, reason)
            self._unreadable = reason
        except ConfigError as exc:
            logger.error("keys: %s: the keys from before stay good", exc)

    def _read(self, path: Path) -> None:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            data = file.read()
        self._version = _version(status)  # also of a broken file, which is read once
        self._warn_of_readers(path, status.st_mode)
        try:
            entries = parse_keys(data)
            self._refuse_given(entries)
        except ConfigError as exc:
            raise ConfigError(f"{path}: {exc}") from exc
        self._keys = _keys_by_digest((*self._given, *entries))  # in one step, because requests come in meanwhile
        if not self._keys:
            logger.warning("keys: %s holds no key, so every request is refused", path)

    def _refuse_given(self, entries: tuple[KeyEntry, ...]) -> None:
        """A client has one name and one set of limits, wherever its key comes from."""
        names = {entry.name for entry in self._given}
        hashes = {entry.sha256 for entry in self._given}
        for entry in entries:
            if entry.name in names or entry.sha256 in hashes:
                raise ConfigError(
                    f"'{entry.name}' has the name or the key of one in {self._variable}: keep it in one of the two"
                )

    def _warn_of_readers(self, path: Path, mode: int) -> None:
        if mode & _READABLE_BY_OTHERS and not self._has_warned_of_readers:
            self._has_warned_of_readers = True
            logger.warning("keys: others than its owner may use %s: `chmod 600 %s` keeps it to the owner", path, path)


def new_key() -> str:
    """A new key: `sa-` and 256 random bits in 43 characters of A-Z, a-z, 0-9, `-` and `_`."""
    return f"sa-{secrets.token_urlsafe(_NUM_KEY_BYTES)}"


def sha256_of(key: str) -> str:
    """The key's SHA-256 in 64 hex digits, as the file holds it."""
    return _digest(key).hex()


def _digest(key: str) -> bytes:
    # A plain hash is right here. Slow, salted hashes protect words that people chose; nobody guesses 256 random
    # bits, no table holds them, and this runs for each request.
    return hashlib.sha256(key.encode()).digest()


def _bearer_key(authorization: str | None) -> str:
    """The key in an Authorization header. Its length is checked first, so that nothing long is processed."""
    if authorization is None:
        raise InvalidKey(f"this service wants an API key, and none came: {_SEND}")
    if len(authorization) > _LONGEST_HEADER:
        raise InvalidKey(f"the Authorization header has more than {_LONGEST_HEADER} characters: {_SEND}")
    match = _BEARER.fullmatch(authorization)
    if match is None:
        raise InvalidKey(f"the Authorization header isn't the word Bearer, one space and a key: {_SEND}")
    return match.group(1)


def _entries_of_variable(variable: str) -> tuple[KeyEntry, ...]:
    """The keys of the variable, as administrators without limits; none if it isn't set."""
    text = os.environ.get(variable)
    if text is None:
        return ()
    keys = dict.fromkeys(re.findall(r"[^,\s]+", text))
    if not keys:
        raise ConfigError(f"{variable} is set and holds no key: put one in, or unset it for a service without keys")
    for number, key in enumerate(keys, start=1):
        header = f"Bearer {key}"
        if not _BEARER.fullmatch(header) or len(header) > _LONGEST_HEADER:
            raise ConfigError(f"{variable}: key {number} is too long for a header or holds what none can carry")
    return tuple(
        KeyEntry(name=f"env-{number}", sha256=sha256_of(key), admin=True) for number, key in enumerate(keys, start=1)
    )


def _keys_by_digest(entries: Iterable[KeyEntry]) -> dict[bytes, Key]:
    return {bytes.fromhex(entry.sha256): _key(entry) for entry in entries}


def _key(entry: KeyEntry) -> Key:
    return Key(
        name=entry.name,
        id=entry.sha256[:12],
        models=None if entry.models is None else frozenset(entry.models),
        is_admin=entry.admin,
        priority=entry.priority,
        requests_per_minute=entry.requests_per_minute,
        tokens_per_minute=entry.tokens_per_minute,
        images_per_minute=entry.images_per_minute,
    )


def _version(status: os.stat_result) -> tuple[int, ...]:
    """Changes when the file is written, replaced, or given other rights (`st_ctime_ns` has that time)."""
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino
