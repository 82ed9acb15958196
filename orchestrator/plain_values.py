"""Plain values: all that a recipe is made of. Read from YAML, of which no tag makes anything else."""

import math
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from spaces.errors import BadInput
from spaces.redact import redacted

# Far above any recipe; what is beyond is a mistake or an attack, and would take minutes or all memory.
LARGEST = 2_000_000  # bytes of a file
DEEPEST = 30  # mappings and lists within each other
MOST = 500_000  # values, with each alias counted as often as it stands
LONGEST = 10_000  # characters of a text
GREATEST = 2**63


def read(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        BadInput: no UTF-8, no YAML, no mapping, or one that `check` refuses.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise BadInput(f"{path}: too large for a recipe: over {LARGEST:,} bytes")
        value = load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise BadInput(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise BadInput(f"{path}: a recipe is a mapping of keys to values")
    try:
        check(value)
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from error
    return value


def load(text: str) -> Any:
    """The value that YAML spells. Raises `yaml.YAMLError` for anything else."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError:
        raise
    except RecursionError:
        raise yaml.YAMLError("too many mappings and lists within each other") from None
    except Exception as error:  # PyYAML raises whatever it stumbles on in values such as `!!bool x`
        raise yaml.YAMLError(f"a value that is none of its type: {error}") from error


class _Loader(yaml.SafeLoader):
    """Reads safe YAML, and refuses a key that stands twice, of which the last would win in silence.

    Merge keys and long texts are refused before anything is made of them: mappings that merge each other grow without
    bound, and some numbers take time that grows with the square of their length.
    """

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        node: yaml.ScalarNode = super().compose_scalar_node(anchor)
        if len(node.value) > LONGEST:
            line = node.start_mark.line + 1
            raise yaml.YAMLError(f"line {line}: {_too_long(node.value)}")
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                name, line = (key.tag, key.value), key.start_mark.line + 1
                if key.tag == "tag:yaml.org,2002:merge":
                    raise yaml.YAMLError(f"line {line}: merge keys (<<) are not read; use extends")
                if name in lines:
                    raise yaml.YAMLError(f"line {line}: {key.value!r} stands twice, first in line {lines[name]}")
                lines[name] = line
        return node


def check(value: Any) -> None:
    """Raises `BadInput` unless a value is plain, of a sensible size, and holds no secret of this process.

    A run keeps its recipe, so that one with a secret in it is refused: redacted, it could not be run again.
    """
    texts = []
    for count, (place, inner) in enumerate(_walk(value, "", 0), 1):
        if count > MOST:
            raise BadInput(f"over {MOST:,} values, as often as YAML's aliases repeat them")
        if fault := _fault(inner):
            raise BadInput(f"recipe: {place or 'the whole'}: {fault}")
        if isinstance(inner, str):
            texts.append((place, inner))
    together = "\n".join(text for _, text in texts)
    if redacted(together) != together:
        for place, text in texts:
            if (shown := redacted(text)) != text:
                raise BadInput(f"recipe: {place} holds a secret, which a run would keep on disk: {shown!r}")


def _walk(value: Any, place: str, depth: int) -> Iterator[tuple[str, Any]]:
    """The value and all within it, keys too, each with its place."""
    yield place, value
    if depth > DEEPEST:
        raise BadInput(f"recipe: over {DEEPEST} mappings and lists within each other")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise BadInput(f"recipe: {place + ': ' if place else ''}the key {str(key)[:100]!r} must be text")
            yield place, key
            yield from _walk(inner, f"{place}.{key[:100]}" if place else key[:100], depth + 1)
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _walk(inner, f"{place}.{number}", depth + 1)


def _too_long(text: str) -> str:
    return f"a text must be at most {LONGEST:,} characters, not {len(text):,}"


def printable(text: str) -> str:
    """The text with what a terminal would act on, and line ends, spelled out: for what others wrote."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _fault(value: Any) -> str | None:
    match value:
        case None | bool() | Mapping() | list() | tuple():
            return None
        case int():
            return None if abs(value) < GREATEST else "a whole number must be below 2^63"
        case float():
            return None if math.isfinite(value) else f"a number must be finite, not {value}"
        case str() if len(value) > LONGEST:
            return _too_long(value)
        case str():
            bad = [c for c in value if c not in "\n\t" and unicodedata.category(c) in ("Cc", "Cs")]
            return f"a text must hold no control characters, not {bad[0]!r}" if bad else None
    return f"a value must be a number, text, list or mapping, not of type {type(value).__name__}"
