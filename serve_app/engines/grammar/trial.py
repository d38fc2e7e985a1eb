"""Compiles one grammar from stdin in a process that may not take much memory or time, and says what is wrong.

Run as a script; prints nothing for a grammar that works. Dying is an answer too. Imports nothing of this package,
which the new process may not find.
"""

import resource
import sys
from typing import Any

LIMITS: dict[str, Any] = {"max_lexer_states": 50_000, "precompute_large_lexemes": False, "verbose_errors": False}
_MAX_MEMORY_BYTES = 1 << 30
_MAX_CPU_S = 2


def main() -> None:
    """Limit this process, then compile."""
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY_BYTES, _MAX_MEMORY_BYTES))
    # The hard limit comes later, so that this one shows as a signal of its own.
    resource.setrlimit(resource.RLIMIT_CPU, (_MAX_CPU_S, _MAX_CPU_S + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

    grammar = sys.stdin.buffer.read().decode()
    matcher = LLMatcher(LLTokenizer("byte"), grammar, log_level=0, limits=LLParserLimits(**LIMITS))
    if not matcher.is_error():
        matcher.compute_bitmask()  # the lexer is built with the first mask
    sys.stdout.write(matcher.get_error())


if __name__ == "__main__":
    main()
