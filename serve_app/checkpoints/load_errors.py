"""Explains in a sentence with the fix why a model can't be fetched or loaded, from a hub's or library's exception.

Recognizes exceptions of torch and transformers by their names, so that it imports neither. Imports the hub's client
late: it reads its environment at its import, which a replica sets (`env_from`).
"""

import errno
from collections.abc import Sequence

from safetensors import SafetensorError

from serve_app.checkpoints.folder import abridged
from serve_app.config.applications import ModelConfig
from serve_app.errors import ConfigError

_OUT_OF_MEMORY = ("OutOfMemoryError", "MemoryError")


def explain(exc: BaseException, config: ModelConfig) -> str:
    """The sentence for a library that couldn't load a checkpoint from its folder."""
    reason, start = _reason(exc), f"source '{config.source}'"
    text = str(exc)
    if type(exc).__name__ in _OUT_OF_MEMORY:
        return f"{start} doesn't fit into memory: give it more num_gpus or a smaller dtype"
    if isinstance(exc, SafetensorError | EOFError):
        return f"{start}: its weights are corrupt or cut short ({reason}): download the checkpoint again"
    if "trust_remote_code" in text:
        return f"{start} brings its own Python code: read it, then allow it with trust_remote_code: true"
    if "does not recognize this architecture" in text or "Unrecognized" in text:
        return f"{start} has an architecture that this engine doesn't know ({reason}): choose another engine or model"
    if "ignore_mismatched_sizes" in text:
        return f"{start}: its weights have other shapes than its config.json says: take both from the same checkpoint"
    if isinstance(exc, ImportError):
        return f"{start} needs a package that isn't installed ({reason}): install it"
    if isinstance(exc, TypeError) and config.engine_args:
        return f"{start}: check engine_args ({', '.join(sorted(config.engine_args))}): {reason}"
    if "tokenizer" in text.lower() or "processor" in text.lower():
        return f"{start}: its tokenizer or processor can't be loaded ({reason}): add their files to the checkpoint"
    return f"{start} can't be loaded ({type(exc).__name__}: {reason}): check that the checkpoint is complete"


def explain_download(exc: BaseException, source: str, revision: str | None) -> str:
    """The sentence for a hub or an object store that didn't give `source`."""
    start, reason = f"source '{source}'", _reason(exc)
    if isinstance(exc, OSError) and exc.errno == errno.ENOSPC:
        return (
            f"{start} doesn't fit on the disk: free some space, or name a larger disk in HF_HOME or SERVE_APP_CACHE"
        )
    if "://" in source:
        return (
            f"{start} can't be downloaded ({type(exc).__name__}: {reason}): check the URL, the network and the keys"
        )
    return f"{start}: {_explain_hub(exc, source, revision)}"


def _explain_hub(exc: BaseException, source: str, revision: str | None) -> str:
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(exc, LocalEntryNotFoundError) and exc.__cause__:
        exc = exc.__cause__  # the hub failed, and its cache lacks the model too
    hub, status = constants.ENDPOINT, exc.response.status_code if isinstance(exc, HfHubHTTPError) else None
    if isinstance(exc, GatedRepoError):
        return f"it is gated: accept its terms at {hub}/{source} and set HF_TOKEN to a token of that account"
    if isinstance(exc, RevisionNotFoundError):
        return f"the hub has no revision '{revision}' of it: correct the revision"
    if isinstance(exc, RepositoryNotFoundError) or status in (401, 403, 404):
        return (
            f"there is no such folder here, and the hub at {hub} has no such model or shows it only to others: "
            "correct the name, or set HF_TOKEN to a token that may read it"
        )
    if status is not None:
        return f"the hub at {hub} answered {status}: try again later"
    if isinstance(exc, OfflineModeIsEnabled | LocalEntryNotFoundError):
        return (
            f"there is no such folder here, and offline mode finds no whole copy in {constants.HF_HUB_CACHE}: "
            "download it there first, or unset HF_HUB_OFFLINE"
        )
    return (
        f"there is no such folder here, and the hub at {hub} can't be reached ({_reason(exc)}): check the network "
        "and HF_ENDPOINT, or give the path of a folder"
    )


def require_all_weights(missing: Sequence[str], config: ModelConfig) -> None:
    """Raise `ConfigError` where a library would make up weights that the checkpoint lacks."""
    if missing:
        raise ConfigError(
            f"source '{config.source}' lacks {len(missing)} of the model's weights ({abridged(sorted(missing))}), "
            "which would be random: download the checkpoint again, or save it again with all of them"
        )


def _reason(exc: BaseException) -> str:
    lines = str(exc).strip().splitlines()
    return lines[0][:300] if lines else type(exc).__name__
