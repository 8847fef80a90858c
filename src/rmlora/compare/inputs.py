"""What a study depends on outside its file: versions, machine, and hashes of its models and data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rmlora.compare.store import Store, read_record
from rmlora.compare.study import Study
from rmlora.errors import StateError
from rmlora.files import write_text
from rmlora.run.environment import describe_process, hash_tree

_MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")


def note_inputs(study: Study, store: Store) -> dict[str, Any]:
    """Write environment.json, or compare with the one that is there and add what is new.

    Args:
        study: to be run now.
        store: its folder.

    Returns:
        What the file holds.

    Raises:
        StateError: a model or data file has changed since the study began, so its cells could not be compared.
    """
    now = describe_inputs(study)
    before = read_record(store.environment)
    if before is not None:
        for kind in ("models", "data"):
            for name, digest in now[kind].items():
                if before.get(kind, {}).get(name, digest) != digest:
                    raise StateError(
                        f'"{name}" has changed since the study in "{store.path}" began, so its cells could not be '
                        "compared; give another output, or put the file back"
                    )
            now[kind] = before.get(kind, {}) | now[kind]
        later = {name: now[name] for name in ("command", "python", "versions", "git", "machine")}
        known = [{name: before.get(name) for name in later}, *before.get("continued", [])]
        new = [] if any(_same(later, one) for one in known) else [later]
        now = {**now, **known[0], "continued": [*before.get("continued", []), *new]}
    write_text(store.environment, json.dumps(now, indent=2) + "\n")
    return now


def describe_inputs(study: Study) -> dict[str, Any]:
    """Collect versions, machine and hashes; what comes from a Hub is named only."""
    files = dict.fromkeys(f for task in study.tasks for f in (task.data.train, task.data.eval) if f)
    files |= dict.fromkeys(f"{expert}/adapter_model.safetensors" for expert in _experts(study))
    paths = {name: Path(name).expanduser() for name in files}
    return {
        **describe_process(),
        "models": {name: _describe_model(name) for name in study.models},
        "data": {name: hash_tree(path) for name, path in paths.items() if path.exists()},
    }


def _experts(study: Study) -> list[str]:
    """Folders of adapters that runs of mode mixture put together."""
    own = [expert for entry in study.methods for expert in entry.mixture.get("experts", [])]
    return [*study.mixture.experts, *own]


def _describe_model(name: str) -> dict[str, str] | None:
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return None
    files = sorted({p for pattern in _MODEL_FILES for p in folder.glob(pattern)})
    return {p.name: hash_tree(p) for p in files}


def _same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return all(a[name] == b[name] for name in ("python", "versions", "machine"))
