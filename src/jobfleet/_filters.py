"""Carry warning filters from the client to its workers.

The client applies its own filters to everything that reaches it, so what stands on a
worker may let more through than on the client, never less.
"""

from __future__ import annotations

import importlib
import logging
import re
import sys
import warnings
from functools import lru_cache
from typing import Any

logger = logging.getLogger(__name__)

#: What `warnings` keeps: action, message, category, module, line number.
Filter = tuple[str, Any, Any, Any, int]
#: A class by module and qualified name.
ClassName = tuple[str, str]
#: A filter in plain values: action, message, categories, module, line number.
EncodedFilter = tuple[str, Any, tuple[ClassName, ...], Any, int]
#: What crosses to the worker: plain and hashable.
EncodedFilters = tuple[EncodedFilter, ...]

#: Lets every warning through, each time.
DELIVER_ALL: Filter = ("always", None, Warning, None, 0)

# Actions that show a warning and then look at the registry of the process it came from.
# "all" is how Python 3.13 also spells "always", which older versions do not know.
_SHOWING = frozenset({"default", "module", "once", "all", "always"})


def class_name(cls: type) -> ClassName:
    """Return the name by which a class is found in another process."""
    return (str(cls.__module__), str(cls.__qualname__))


def find_class(name: ClassName, *, load: bool) -> type[Warning] | None:
    """Return the warning category of this name, None where there is none.

    Parameters
    ----------
    name
        Module and qualified name.
    load
        Whether to import its module; else only what is already imported is searched.
    """
    module_name, qualname = name
    module = sys.modules.get(module_name)
    try:
        if module is None and load:
            module = importlib.import_module(module_name)
        found: Any = module
        for part in qualname.split("."):
            found = getattr(found, part)
    except Exception:
        # Importing runs foreign code, which may fail in any way; all of them say that
        # the category cannot be had here.
        logger.debug("no warning category %s.%s here", *name, exc_info=True)
        return None
    return found if isinstance(found, type) and issubclass(found, Warning) else None


def encode_filters(filters: list[Any] | None = None) -> EncodedFilters:
    """Return the process's warning filters in plain values.

    Parameters
    ----------
    filters
        The filters to encode, by default those in force in the current thread.

    Notes
    -----
    A filter that cannot be written down (a pattern of one's own making, a category that is
    no class) is left out.
    """
    if filters is None:
        # Python 3.14 can keep filters per context; `warnings.filters` are then only
        # those of the process.
        in_force = getattr(warnings, "_get_filters", None)
        filters = list(in_force() if in_force else warnings.filters)
    encoded = []
    for entry in filters:
        try:
            action, message, category, module, lineno = entry
            classes = category if isinstance(category, tuple) else (category,)
            encoded.append(
                (
                    str(action),
                    _encode_pattern(message),
                    tuple(class_name(cls) for cls in classes),
                    _encode_pattern(module),
                    int(lineno),
                )
            )
        except (AttributeError, TypeError, ValueError):
            logger.debug("warning filter not sent: %r", entry, exc_info=True)
    return tuple(encoded)


def _encode_pattern(pattern: Any) -> Any:
    """Return None, the text to be equal to, or the source and flags of a regex."""
    if pattern is None or type(pattern) is str:
        return pattern
    return (str(pattern.pattern), int(pattern.flags))


def _decode_pattern(encoded: Any) -> Any:
    return re.compile(*encoded) if isinstance(encoded, tuple) else encoded


def decode_filters(encoded: EncodedFilters) -> tuple[Filter, ...]:
    """Return the filters for a worker: every warning the client may show gets through.

    "error" and "ignore" stay, the actions that show something become "always": what was
    already shown is the client's to know, and a worker's registry would make the answer
    depend on where the task ran. Categories that this process does not have are left out;
    only an "error" imports what it needs, since it alone must act here.
    """
    filters, missing, loaded = _decode_cached(encoded)
    if missing and loaded != len(sys.modules):
        _decode_cached.cache_clear()
        filters, _, _ = _decode_cached(encoded)
    return filters


@lru_cache(maxsize=16)
def _decode_cached(encoded: EncodedFilters) -> tuple[tuple[Filter, ...], bool, int]:
    """Decode, and say whether a category was missing with how many modules loaded."""
    filters: list[Filter] = []
    missing = False
    for action, message, names, module, lineno in encoded:
        load = action == "error"
        found = [find_class(name, load=load) for name in names]
        classes = tuple(cls for cls in found if cls is not None)
        missing = missing or len(classes) < len(names)
        if not classes:
            continue
        try:
            message, module = _decode_pattern(message), _decode_pattern(module)
        except re.error:
            # Another Python's syntax; the client still applies it.
            logger.debug("warning filter not applied: %r", encoded, exc_info=True)
            continue
        category = classes[0] if len(classes) == 1 else classes
        act = "always" if action in _SHOWING else action
        filters.append((act, message, category, module, lineno))
    # What no filter matches would get the process's default action, "default". A worker
    # that is the client of an inner call sends filters that end so already.
    if DELIVER_ALL not in filters[-1:]:
        filters.append(DELIVER_ALL)
    return tuple(filters), missing, len(sys.modules)


def forget_shown() -> None:
    """Make `warnings` forget what it has shown, as any change of the filters does."""
    # Private, but what every library that assigns `warnings.filters` calls; Python 3.14
    # kept it for them (_py_warnings.py says so).
    warnings._filters_mutated()  # type: ignore[attr-defined]
