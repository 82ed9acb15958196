"""Text without the secrets of this process: what is logged, recorded or shown goes through `redacted`."""

import os
import re
from collections.abc import Mapping
from urllib.parse import quote

SHORTEST = 8  # characters; shorter values stand in ordinary text too often
_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|KEY(?!BOARD)|AUTH(?!OR)", re.IGNORECASE)
_USER = re.compile(r"(?<=://)[^\s/?#'\"<>]+@")
_QUERY = re.compile(
    r"([?&;][\w.%-]*(?:token|secret|passw|signature|credential|auth|key|sig|sas)[\w.%-]*=)[^\s&;#'\"<>]+", re.IGNORECASE
)


def redacted(text: object, environment: Mapping[str, str] = os.environ) -> str:
    """The text with each secret replaced by a mark, such as `[HF_TOKEN]`; to do it twice changes nothing more.

    Secrets are the values of environment variables that are named like one (8 characters or more, and no path that is
    there), `user:password@` in an address, and the values of its parameters that are named like one (`?token=...`).
    """
    clean = _text(text)
    secrets = _secrets(environment)
    if secrets:
        # Marks first, so that they stay: a value may be part of another variable's name.
        parts = map(re.escape, [*dict.fromkeys(secrets.values()), *sorted(secrets, key=len, reverse=True)])
        clean = re.sub("|".join(parts), lambda found: secrets.get(found[0], found[0]), clean)
    return _QUERY.sub(r"\1***", _USER.sub("***@", clean))


def _text(value: object) -> str:
    try:
        return str(value)
    except Exception:  # of an error of the user's own kind, which may be wrong too
        return f"a {type(value).__name__} that cannot be shown"


def _secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """The mark of each secret value, as it is and as addresses, messages and JSON write it."""
    found = {}
    for name, value in environment.items():
        if _NAME.search(name) and len(value) >= SHORTEST and not _is_path(value):
            lines = [line for line in value.splitlines() if len(line) >= SHORTEST]
            shown = repr(value)[1:-1], " ".join(value.split()), quote(value, safe="", errors="replace")
            found.update(dict.fromkeys((value, *shown, *lines), f"[{name}]"))
    return found


def _is_path(value: str) -> bool:
    return all("/" in part and os.path.exists(os.path.expanduser(part)) for part in value.split(os.pathsep))
