"""``build``: objects from ``_target_`` nodes, against an allow-list; and the nearest valid names of a wrong one."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, TypeAlias, TypeVar

from jepa.errors import InputError

ALLOWED_TARGETS = ("jepa", "torch.nn", "torch.optim", "timm", "torchmetrics", "lightning")
MISSING = "???"  # OmegaConf's mark of a value that the user has to give
Node: TypeAlias = dict[str, Any]  # a `_target_` tree: plain data
T = TypeVar("T")


def build(node: Mapping[str, Any], **extra: Any) -> Any:
    """Call the class or function that ``node["_target_"]`` names, with the other keys and ``extra`` as arguments.

    Nodes within the arguments are built first. All targets are checked before the first one is imported: each is a
    public class or function of a package in `ALLOWED_TARGETS`.

    >>> build({"_target_": "jepa.selective.Uniform", "rate_hz": 2.0}).rate_hz
    2.0

    Raises:
        InputError: a target is refused or missing, an argument unknown, missing or given twice, or of a refused value.
    """
    for key in node.keys() & extra.keys():
        raise InputError(f"{key} is set by the program and must not be configured, got {node[key]!r}")
    check_node(node, "")
    if "_target_" not in node:
        raise InputError(f"node must have a _target_, got the keys {', '.join(map(str, node)) or '(none)'}")
    return _build(node, "", extra)


def build_as(kind: type[T], key: str, node: Mapping[str, Any], **extra: Any) -> T:
    """`build`, of a node under `key` that must give a `kind`, or `InputError`."""
    built = build(node, **extra)
    if not isinstance(built, kind):
        raise InputError(f"{key}._target_ must build {kind.__name__}, got {type(built).__name__}")
    return built


def check_node(value: Any, key: str, allowed: Sequence[str] = ALLOWED_TARGETS) -> None:
    """Refuse a tree in which a value is missing, or a ``_target_`` lies outside `allowed`. Nothing is imported."""
    if value == MISSING:
        raise InputError(f"{key} is missing: give it as {key}=<value>")
    if isinstance(value, Mapping):
        for name, item in value.items():
            if name == "_target_":
                _check_target(item, dotted(key, name), allowed)
            check_node(item, dotted(key, name), allowed)
    for i, item in enumerate(value if isinstance(value, list) else ()):
        check_node(item, f"{key}[{i}]", allowed)


def dotted(key: str, name: object) -> str:
    """The key `name` below `key`."""
    return f"{key}.{name}" if key else str(name)


def dotted_keys(node: object, prefix: str = "") -> Iterator[str]:
    """Every key of nested mappings, below `prefix`.

    >>> list(dotted_keys({"jepa": {"steps": 3}, "seed": 0}))
    ['jepa', 'jepa.steps', 'seed']
    """
    for name, value in node.items() if isinstance(node, Mapping) else ():
        yield dotted(prefix, name)
        yield from dotted_keys(value, dotted(prefix, name))


def nearest(word: str, options: Iterable[str]) -> list[str]:
    """Up to three of the dotted ``options`` that ``word`` is close to, as a whole or by its last part.

    >>> nearest("jepa.stpes", ["jepa.steps", "seed"])
    ['jepa.steps']
    """
    last = {option: option.rpartition(".")[2] for option in options}
    parts = difflib.get_close_matches(word.rpartition(".")[2], dict.fromkeys(last.values()), cutoff=0.75)
    found = difflib.get_close_matches(word, last, cutoff=0.75)
    found += [option for part in parts for option in last if last[option] == part]
    found += difflib.get_close_matches(word, last, cutoff=0.6)
    return list(dict.fromkeys(found))[:3]


def unknown_key(key: str, options: Iterable[str]) -> InputError:
    """The error for a dotted ``key`` that has no place: it names the nearest ``options``, or the key's siblings."""
    options, top = list(options), key.partition(".")[0]
    if key in options or (top in options and top != key and not any(each.startswith(f"{top}.") for each in options)):
        return InputError(f"{key} cannot be given: {top} is null or has no keys")
    if found := nearest(key, options):
        return InputError(f"unknown key {key!r}; nearest valid: {', '.join(found)}")
    parent = key.rpartition(".")[0]
    level = sorted({option for option in options if option.rpartition(".")[0] == parent})
    return InputError(f"unknown key {key!r}" + (f"; valid here: {', '.join(level)}" if level else ""))


def _build(value: Any, key: str, extra: Mapping[str, Any] | None = None) -> Any:
    if isinstance(value, list):
        return [_build(item, f"{key}[{i}]") for i, item in enumerate(value)]
    if not isinstance(value, Mapping):
        return value
    factory = None
    if target := value.get("_target_"):
        factory = _locate(target, dotted(key, "_target_"))
        _check_arguments(factory, target, key, (value.keys() - {"_target_"}) | (extra or {}).keys())
    arguments = {name: _build(item, dotted(key, name)) for name, item in value.items() if name != "_target_"}
    if factory is None:
        return arguments
    try:
        return factory(**arguments, **(extra or {}))
    except (ValueError, AssertionError) as error:  # timm asserts what its sizes have to be
        raise InputError(f"{f'{key}: ' if key else ''}{target}: {error}") from error


def _check_target(target: Any, key: str, allowed: Sequence[str]) -> None:
    """Refuse by spelling alone."""
    parts = target.split(".") if isinstance(target, str) else []
    if len(parts) < 2 or not all(part.isidentifier() and not part.startswith("_") for part in parts):
        raise InputError(f"{key} must be the dotted name of a public class or function, got {target!r}")
    if not _is_within(target, allowed):
        raise InputError(f"{key} must lie within {', '.join(allowed)}, got {target!r}")


def _is_within(name: str, packages: Sequence[str]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in packages)


def _locate(target: str, key: str) -> Callable[..., Any]:
    module_name, _, name = target.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module exists and lacks a dependency
        raise InputError(f"{key}: there is no module {error.name!r}, got {target!r}") from error
    found = getattr(module, name, None)
    if not (inspect.isclass(found) or inspect.isfunction(found)) or not _is_within(
        str(found.__module__), ALLOWED_TARGETS
    ):
        public = [n for n, item in vars(module).items() if inspect.isclass(item) or inspect.isfunction(item)]
        close = nearest(name, [n for n in public if not n.startswith("_")])
        hint = f"; nearest: {', '.join(close)}" if close else ""
        raise InputError(f"{key} must be a class or function of an allowed package, got {target!r}{hint}")
    return found


def _check_arguments(factory: Callable[..., Any], target: str, key: str, given: Set[str]) -> None:
    parameters = inspect.signature(factory).parameters.values()
    named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for name in sorted(given - named.keys()):
            valid = ", ".join(nearest(name, named) or named) or "(it takes none)"
            raise InputError(f"{target} has no argument {dotted(key, name)!r}; nearest valid: {valid}")
    for name, parameter in named.items():
        if parameter.default is parameter.empty and name not in given:
            raise InputError(f"{target} needs the argument {dotted(key, name)!r}")
