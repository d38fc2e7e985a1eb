"""Limits the whitespace in the arguments of a forced tool call.

xgrammar allows any amount between the JSON tokens, and small models then write nothing else until their limit.
"""

import json
from dataclasses import replace
from typing import Any

from vllm.sampling_params import SamplingParams

_MAX_BLANKS = 1  # as `json.dumps` writes


def bound_blanks(params: SamplingParams) -> None:
    """Set the limit in every structural tag of the parameters."""
    outputs = params.structured_outputs
    if outputs is None or not outputs.structural_tag:
        return
    tag = json.loads(outputs.structural_tag)
    _bound(tag)
    params.structured_outputs = replace(outputs, structural_tag=json.dumps(tag))


def _bound(value: Any) -> None:
    if isinstance(value, list):
        for item in value:
            _bound(item)
    elif isinstance(value, dict) and value.get("type") == "json_schema" and "json_schema" in value:
        value["max_whitespace_cnt"] = _MAX_BLANKS
    elif isinstance(value, dict):
        for item in value.values():
            _bound(item)
