"""What HAProxy and our processes tell each other, and by what they know that it isn't a client who says so.

They share a secret: `SERVE_APP_LANE_SECRET`, or else one that is made of the token by which Ray's processes know each
other. Imports little: HAProxy's launcher runs it.
"""

import hmac
import os
from pathlib import Path

LANES_PATH = "/-/lanes"
SECRET_HEADER = "x-serve-app-lanes"  # of HAProxy when it asks the ingress for the lanes: the secret
DRAWN_HEADER = "x-serve-app-drawn"  # the secret, the name that the client gave, and the model that was drawn for it
SECRET_VARIABLE = "SERVE_APP_LANE_SECRET"


def lane_secret() -> str | None:
    """The secret, 64 hex digits; None where this process shares none with the others."""
    shared = os.environ.get(SECRET_VARIABLE) or _ray_token()
    return hmac.digest(shared.encode(), b"serve_app lanes", "sha256").hex() if shared else None


def is_secret(text: str, secret: str | None) -> bool:
    return secret is not None and hmac.compare_digest(text.encode(), secret.encode())


def _ray_token() -> str:
    """https://docs.ray.io/en/latest/ray-security/token-auth.html"""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token
    try:
        return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token").read_text().strip()
    except (OSError, RuntimeError):  # the latter where there is no home
        return ""
