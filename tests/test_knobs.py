"""Knobs as files give them: of the wrong type they are refused by name, never compared."""

import inspect
from typing import Any

import pytest

from rmlora.combine import Chain, chain
from rmlora.errors import MethodError
from rmlora.methods import METHODS
from rmlora.methods.knobs import build_method


@pytest.mark.parametrize("name", list(METHODS))
@pytest.mark.parametrize("value", ["no such", {}, [1], float("nan"), -1], ids=str)
def test_a_value_no_knob_can_have_is_refused_in_one_line(name: str, value: object) -> None:
    for knob in METHODS[name].knobs:
        with pytest.raises(MethodError, match=knob) as refused:
            METHODS[name].build(**{knob: value})
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", list(METHODS))
def test_defaults_are_of_the_right_type(name: str) -> None:
    defaults = {p.name: p.default for p in inspect.signature(METHODS[name].function).parameters.values()}
    assert METHODS[name].build(**defaults) == METHODS[name].build()


def test_the_knob_of_several_that_is_wrong_is_named() -> None:
    with pytest.raises(MethodError, match="max_norm='1' is a str"):
        METHODS["rm-lora"].build(weight=1e-3, directions=0.5, max_norm="1")


def test_annotations_that_are_types_count_and_none_allows_anything() -> None:
    def own(flag: Any = None, count: Any = 1, free=None) -> Chain:  # type: ignore[no-untyped-def]
        return chain()

    own.__annotations__ = {"flag": bool, "count": int}
    assert build_method("own", own, {"flag": True, "free": True}) == chain()
    with pytest.raises(MethodError, match="count=True is a bool; it takes int"):
        build_method("own", own, {"count": True})


def test_an_error_of_the_method_itself_is_not_hidden() -> None:
    def broken(count: int = 1) -> Chain:
        return chain() if count == 1 else sum(1, 2)  # type: ignore[call-overload,no-any-return]

    def always(count: int = 1, other: int = 1) -> Chain:
        raise TypeError("own mistake")

    with pytest.raises(MethodError, match="count=2"):
        build_method("broken", broken, {"count": 2})
    with pytest.raises(TypeError, match="own mistake"):
        build_method("always", always, {})
