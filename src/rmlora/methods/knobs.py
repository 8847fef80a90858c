"""Knobs as a file or a command line gives them: of the type the method asks for, before it compares them with 0."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

from rmlora.combine import Chain
from rmlora.errors import MethodError


def build_method(name: str, function: Callable[..., Chain], knobs: Mapping[str, object]) -> Chain:
    """Call a method's function with knobs that are known to exist; a value of the wrong type is named.

    Args:
        name: of the method.
        function: the method; the annotations of its parameters say what a knob may be.
        knobs: by name.

    Raises:
        MethodError: a value is of the wrong type, or out of range.

    Example:
        >>> from rmlora.methods.r_lora import r_lora
        >>> build_method("r-lora", r_lora, {"weight": "strong"})
        Traceback (most recent call last):
        ...
        rmlora.errors.MethodError: method r-lora: weight='strong' is a str; it takes Scalar | None
    """
    wanted = {knob: _annotation(p) for knob, p in inspect.signature(function).parameters.items()}
    for knob, value in knobs.items():
        if not _fits(value, wanted[knob]):
            raise _wrong_type(name, knob, value, wanted[knob])
    try:
        return function(**knobs)
    except TypeError:
        for knob, value in knobs.items():
            if _breaks(function, knob, value):
                raise _wrong_type(name, knob, value, wanted[knob]) from None
        raise


def _annotation(parameter: inspect.Parameter) -> str:
    found = parameter.annotation
    return found if isinstance(found, str) else inspect.formatannotation(found)


def _fits(value: object, wanted: str) -> bool:
    """Tell apart what Python counts and compares with alike: truth values, whole and other numbers, empty groups."""
    kinds = set(wanted.split(" | "))
    if "_empty" in wanted:
        return True
    if isinstance(value, bool) or kinds == {"bool"}:
        return isinstance(value, bool) and "bool" in kinds
    if kinds == {"bool", "None"}:
        return value is None
    if isinstance(value, dict | list):
        return type(value).__name__ in wanted
    return not (isinstance(value, float) and kinds <= {"int", "None"})


def _breaks(function: Callable[..., Chain], knob: str, value: object) -> bool:
    try:
        function(**{knob: value})
    except TypeError:
        return True
    except MethodError:
        return False
    return False


def _wrong_type(name: str, knob: str, value: object, wanted: str) -> MethodError:
    return MethodError(f"method {name}: {knob}={value!r} is a {type(value).__name__}; it takes {wanted}")
