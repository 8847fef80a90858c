"""Docstrings: every public name has one, those that users call show an example, and every example runs."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
from types import ModuleType
from typing import Any

import pytest
import torch

import rmlora
import rmlora.methods
import rmlora.schedules
import rmlora.transforms

ANALYSIS = ("gram", "spectra", "orthogonality", "adapters")
WITHOUT_EXAMPLE = {
    "Transform": "is subclassed; docs/extending.md shows how",
    "Attached": "is returned by attach, whose example shows it",
    "MaskedAxes": "is returned by mask_axes, whose example shows it",
    "Method": "is a row of METHODS",
    "Preset": "is a row of PRESETS",
    "Mixture": "is returned by mix_experts",
    "load_mixture": "reads folders; docs/mixture.md shows it",
    "merge_experts": "reads folders; docs/mixture.md shows the run that calls it",
    "mix_experts": "reads folders; docs/mixture.md shows it",
    "PrunedAdapter": "is returned by export_pruned, whose example shows it",
    "Residual": "is returned by residual, whose example shows it",
    "RmloraError": "is caught",
    "TruncatedAdapter": "is returned by export_truncated, whose example shows it",
    "RmloraWarning": "is filtered",
}
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def modules() -> list[ModuleType]:
    """Every module of the package."""
    names = [found.name for found in pkgutil.walk_packages(rmlora.__path__, "rmlora.")]
    return [importlib.import_module(name) for name in names if not name.endswith("__main__")]


def public() -> dict[str, Any]:
    """Public names: what the packages export, and what the modules that users import from define."""
    found: dict[str, Any] = {}
    for module in (rmlora, rmlora.transforms, rmlora.methods):
        found |= {name: getattr(module, name) for name in module.__all__}
    for module in (rmlora.schedules, *(importlib.import_module(f"rmlora.analysis.{name}") for name in ANALYSIS)):
        defined = {name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}
        found |= {name: getattr(module, name) for name in defined if not name.startswith("_")}
    return {name: value for name, value in found.items() if inspect.isclass(value) or inspect.isfunction(value)}


def test_every_public_name_has_a_docstring() -> None:
    assert not [name for name, value in public().items() if not value.__doc__]


def test_what_users_call_shows_an_example() -> None:
    bare = {name for name, value in public().items() if ">>>" not in (inspect.getdoc(value) or "")}
    assert bare == WITHOUT_EXAMPLE.keys()


@pytest.mark.parametrize("module", modules(), ids=lambda module: module.__name__)
def test_every_example_runs(module: ModuleType, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    with torch.random.fork_rng():
        for examples in doctest.DocTestFinder().find(module):
            doctest.DocTestRunner(optionflags=FLAGS).run(examples, out=said.append)
    assert not said, "".join(said)
