"""A space of the user's own: a Python file with `PARAM_SPACE` and `build` (examples/own_space.py).

The file defines `PARAM_SPACE`, a dict of Tune domains, and `build(arch, task, **options)`, and may define `OPTIONS`
(the options with their values), `TAPS` and `HEAD` (else both are found), `canonical_form`, `allows` and `moves`: see
`Space`. It stands alone: it may import packages, but no file beside it, since a run keeps its text and nothing else.
Workers need not have the file: its text goes to them, and is executed once in each process.
"""

import hashlib
import inspect
import linecache
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ray.tune.search.sample import Domain

from spaces.domains import ParamSpace
from spaces.errors import BadInput, unknown
from spaces.others import USERS, blaming, one_line
from spaces.seeding import stable_hash
from spaces.space import Moves, Space, as_is, chosen, everything

LARGEST = 2_000_000  # bytes of a file


def load(path: str | Path) -> Space:
    """The space that a file defines. Its name is the file's and 8 digits of its text, so an edit makes another space.

    Raises:
        BadInput: no such file; no Python, or Python that fails; or names that are missing or of the wrong kind.
            What `build` does shows in `spaces.check_space`.
    """
    try:
        file = Path(os.path.expanduser(path)).resolve()
        if file.stat().st_size > LARGEST:
            raise BadInput(f"{path}: too large for a space: over {LARGEST:,} bytes")
        source = Source(str(file), file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: no such file of a space, or not readable as text: {one_line(error)}") from error
    module = source.module()
    try:
        return _space(source, module)
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from error


@dataclass(frozen=True)
class Source:
    """A Python file as plain data: where it was, and its text."""

    path: str
    text: str

    @property
    def digest(self) -> str:
        """8 hexadecimal digits that name the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:8]

    @property
    def stem(self) -> str:
        """The file's name as an identifier."""
        return re.sub(r"\W", "_", Path(self.path).stem)

    def module(self) -> ModuleType:
        """The text, executed: once in a process.

        Raises:
            BadInput: it is no Python, or raises an error.
        """
        name = f"{USERS}{self.stem}_{self.digest}"
        if name not in sys.modules:
            # Where the file is not, tracebacks and `inspect` find its lines here.
            linecache.cache[self.path] = (len(self.text), None, self.text.splitlines(True), self.path)
            module = sys.modules[name] = ModuleType(name)  # before it runs: dataclasses look themselves up there
            module.__file__ = self.path
            try:
                with blaming(f"{self.path} cannot be executed"):
                    exec(compile(self.text, self.path, "exec", dont_inherit=True), module.__dict__)
            except BadInput:
                del sys.modules[name]
                raise
        return sys.modules[name]


@dataclass(frozen=True)
class Function:
    """A function of a file, or of a dict of a file, as plain data. What it raises is a `BadInput` of one line."""

    source: Source
    name: str
    key: str | None = None

    def __call__(self, subject: Any, *args: Any, **options: Any) -> Any:
        """Call it with an architecture, or whatever else it is about, and the rest of its arguments."""
        found = getattr(self.source.module(), self.name)
        function = found if self.key is None else found[self.key]
        about = chosen(subject) if isinstance(subject, Mapping) else repr(subject)
        with blaming(f"{self.source.path}: {self.name} fails for {about}"):
            return function(subject, *args, **options)


def _space(source: Source, module: ModuleType) -> Space:
    options = _options(module)
    return Space(
        name=f"{source.stem}-{source.digest}",
        param_space=_param_space(module),
        builder=_builder(source, module, options),
        taps=_taps(module),
        head=_head(module),
        canonical_form=_function(source, module, "canonical_form", as_is),
        options=options,
        allows=_function(source, module, "allows", everything),
        moves=_moves(source, module),
    )


def _param_space(module: ModuleType) -> ParamSpace:
    given = getattr(module, "PARAM_SPACE", None)
    if not isinstance(given, dict) or not given:
        raise BadInput(f"PARAM_SPACE must be a dict from names to Tune domains, not {_kind(given)}")
    for name, domain in given.items():
        if not isinstance(name, str):
            raise BadInput(f"PARAM_SPACE has the name {name!r}, which is no string")
        if not isinstance(domain, Domain):
            listed = list(domain) if isinstance(domain, list | tuple | set) else [domain]
            raise BadInput(f"PARAM_SPACE[{name!r}] is no Tune domain; write tune.choice({listed!r})")
    return given


def _builder(source: Source, module: ModuleType, options: Mapping[str, Any]) -> Function:
    build = getattr(module, "build", None)
    if not callable(build):
        raise BadInput("lacks build(arch, task), which gives the network of an architecture")
    try:
        inspect.signature(build).bind({}, None, **options)
    except TypeError as error:
        raise BadInput(f"build({', '.join(['arch', 'task', *options])}) cannot be called: {error}") from error
    return Function(source, "build")


def _options(module: ModuleType) -> Mapping[str, Any]:
    options = getattr(module, "OPTIONS", {})
    if not isinstance(options, dict):
        raise BadInput(f"OPTIONS must be a dict from names to values, not {_kind(options)}")
    try:
        stable_hash(options)
    except TypeError as error:
        raise BadInput(f"OPTIONS holds other than numbers, strings, lists and dicts: {error}") from error
    return options


def _taps(module: ModuleType) -> tuple[str, ...] | None:
    taps = getattr(module, "TAPS", None)
    if taps is None:
        return None
    if not isinstance(taps, list | tuple) or not all(isinstance(tap, str) for tap in taps):
        raise BadInput(f"TAPS must be a tuple of names of submodules, not {taps!r}")
    return tuple(taps)


def _head(module: ModuleType) -> str | None:
    head = getattr(module, "HEAD", None)
    if not isinstance(head, str | None):
        raise BadInput(f"HEAD must be the name of a submodule, not {head!r}")
    return head


def _function(source: Source, module: ModuleType, name: str, default: Callable[..., Any]) -> Callable[..., Any]:
    function = getattr(module, name, None)
    if function is None:
        return default
    if not callable(function):
        raise BadInput(f"{name} must be a function of an architecture, not {_kind(function)}")
    return Function(source, name)


def _moves(source: Source, module: ModuleType) -> Moves:
    moves = getattr(module, "moves", {})
    if not isinstance(moves, dict) or not all(callable(move) for move in moves.values()):
        raise BadInput(f"moves must be a dict from names to functions of a value, not {moves!r}")
    for name in moves:
        if name not in module.PARAM_SPACE:
            raise unknown("name in moves", name, module.PARAM_SPACE)
    return {name: Function(source, "moves", name) for name in moves}


def _kind(value: object) -> str:
    return "missing" if value is None else f"{type(value).__name__}"
