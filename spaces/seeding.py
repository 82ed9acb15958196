"""Seeds derived from what a draw is for, so that every draw is reproducible on its own, in any process."""

import hashlib
import json

import numpy as np


def stable_hash(value: object) -> str:
    """Hexadecimal sha256 of a JSON-able value; the same in every process and on every machine."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


def derive_seed(*parts: object) -> int:
    """A 32-bit seed for the purpose that `parts` name, such as `derive_seed(seed, "curriculum", epoch)`."""
    return int(stable_hash(parts)[:8], 16)


def generator(*parts: object) -> np.random.Generator:
    """A NumPy generator for the purpose that `parts` name."""
    return np.random.default_rng(derive_seed(*parts))


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is not JSON-able")
