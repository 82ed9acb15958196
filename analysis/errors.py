"""What is said of a user's mistake. Analysis stands alone, so it has its own copy of this type."""

import difflib
from collections.abc import Iterable


class BadInput(ValueError):
    """A mistake in what the user gave (path, column, filter); its message is one line that the user can act on."""


def unknown(kind: str, name: object, known: Iterable[str]) -> BadInput:
    """The error for a `name` that is not one of the `known` names of this `kind`."""
    names = list(known)
    near = difflib.get_close_matches(str(name), names, n=1)
    hint = f" did you mean {near[0]!r}?" if near else ""
    return BadInput(f"unknown {kind} {name!r};{hint} known: {', '.join(names) or 'none'}")
