"""The tags by which vLLM holds a forced call to its tool: without blanks that run on.

xgrammar lets any whitespace stand between the tokens of a call's arguments, and small models write nothing else until
their limit. One blank is what `json.dumps` writes.
"""

import json
from dataclasses import replace
from typing import Any

from vllm.sampling_params import SamplingParams

_MAX_BLANKS = 1


def bound_blanks(params: SamplingParams) -> None:
    """Between the JSON's tokens in every tag of these parameters, where they have any."""
    form = params.structured_outputs
    if form is None or not form.structural_tag:
        return
    tag = json.loads(form.structural_tag)
    _bound(tag)
    params.structured_outputs = replace(form, structural_tag=json.dumps(tag))


def _bound(value: Any) -> None:
    if isinstance(value, list):
        for one in value:
            _bound(one)
    elif isinstance(value, dict) and value.get("type") == "json_schema" and "json_schema" in value:
        value["max_whitespace_cnt"] = _MAX_BLANKS
    elif isinstance(value, dict):
        for one in value.values():
            _bound(one)
