"""A clock for code that takes one: time passes when the test says so."""


class Clock:
    """Seconds, as `time.monotonic` counts them."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s
