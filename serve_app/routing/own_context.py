"""Calls to other deployments that end when we end them, not when Ray Serve does.

Ray Serve notes each call under the HTTP request in whose context it is made. When that request's client leaves, Ray
Serve cancels what it noted, from another thread and before our task hears of it: a call that ends so looks like a
replica's death, and an assignment that is cancelled across threads can break the request router. A call that is made
in a context of its own is noted under itself alone. Whoever waits for it is cancelled, and cancels it.
"""

from collections.abc import Callable
from contextvars import Context
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def in_own_context(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `call` as if no HTTP request were being answered."""
    return Context().run(call, *args, **kwargs)
