"""What a path that this service doesn't have is at other services, and which route here does the like.

Knows no request and no lane: a path in, the end of a sentence out. A route that this service gets leaves the table.
"""

import difflib
import re
from collections.abc import Iterable

CHAT, COMPLETIONS = "POST /v1/chat/completions", "POST /v1/completions"
MODELS = "GET /v1/models"
_NEAR = 0.8  # of difflib's ratio: a letter or two of a path

# By what a client means with it: the paths, what they are called, and what does the like here.
ELSEWHERE: tuple[tuple[str, str, str | None], ...] = (
    (r"(/v1)?/responses(/.*)?", "Responses API", CHAT),
    (r"(/v1)?/messages(/.*)?", "Messages API", CHAT),
    (r"/v1/complete", "Text Completions API of Anthropic's", COMPLETIONS),
    (r"/api/chat", "API of Ollama's", CHAT),
    (r"/api/generate", "API of Ollama's", COMPLETIONS),
    (r"/api/(tags|ps|show|version)", "API of Ollama's", MODELS),
    (r"/v1(beta|alpha)?\d?/models/[^/]+:(stream)?generatecontent", "API of Gemini's", CHAT),
    (r"(/v1)?/chat|(/api|/openai)(/v\d)?/chat/completions|(/v[2-9])?/chat/completions", "chat at this path", CHAT),
    (r"/openai/deployments/[^/]+/chat/completions", "API of Azure's", CHAT),
    (r"/openai/deployments/[^/]+/completions", "API of Azure's", COMPLETIONS),
    (r"/completions?|/openai(/v1)?/completions", "completions at this path", COMPLETIONS),
    (r"(/api|/openai)?/models|/get_model_info|/model_info", "list of models at this path", MODELS),
    (r"/v2(/models/.*)?", "inference protocol of KServe's", CHAT),
    (r"/predict|/predictions(/.*)?", "API of that name", "POST /invocations"),
    (r"/captions?|(/v1)?/describe", "captions at this path", "POST /v1/captions"),
    (r"/apply-template", "route of llama.cpp's", "POST /chat_tokenize"),
    (r"/healthz|/livez|/alive|/live|/v2/health/live|/health_generate", "probe of that name", "GET /health"),
    (r"/readyz|/v2/health/ready", "probe of that name", "GET /ready"),
    (r"/version|/server_info|/get_server_info|/props", "route of that name", "GET /info"),
    (r"/redoc|/swagger.*", "page of that name", "GET /docs"),
    (r"(/v1|/api)?/(embeddings?|embed(_all|_sparse)?)", "embeddings", None),
    (r"(/v\d)?/(re)?rank|(/v1)?/(score|pooling|classify|predict_classes)", "ranking, scores or classes", None),
    (r"(/v1)?/audio/.*|/v1/realtime(/.*)?|/inference", "speech", None),
    (r"(/v1)?/(images|videos)(/.*)?", "images or videos of its own making", None),
    (r"/v1/moderations", "moderation", None),
    (r"/v1/(files|uploads|batches|vector_stores|containers)(/.*)?", "files or batches", None),
    (r"/v1/(assistants|threads|conversations|evals)(/.*)?", "assistants or threads", None),
    (r"/v1/fine[_-]tun(es?|ing)(/.*)?|/api/(pull|push|create|copy|delete)", "training or changing of models", None),
    (r"/detokenize|/infill|/slots(/.*)?|/lora-adapters", "route of that name", None),
)  # fmt: skip
_ELSEWHERE = tuple((re.compile(paths), what, like) for paths, what, like in ELSEWHERE)


def hint(path: str, routes: Iterable[str]) -> str:
    """What to do instead of asking for `path`, which is none of these `routes`: the rest of a sentence."""
    plain = path.lower()
    for paths, what, like in _ELSEWHERE:
        if paths.fullmatch(plain):
            return f": this service has no {what}" + (f"; {like} does the like" if like else ", nor a route like it")
    near = difflib.get_close_matches(plain, sorted(set(routes)), n=1, cutoff=_NEAR)
    return f": did you mean {near[0]}?" if near else ": GET /docs lists those that there are"
