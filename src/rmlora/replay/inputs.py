"""What of a run's inputs is no longer what it was: data, model, versions, machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rmlora.errors import ConfigError
from rmlora.heads.features import hash_model
from rmlora.replay.record import Record
from rmlora.run.environment import describe_folder, describe_machine, describe_process, hash_tree

_MACHINE = ("system", "processor", "gpus")


def changed_inputs(record: Record) -> list[str]:
    """Name data files and model files that are no longer those the run read; another result is then no surprise.

    Args:
        record: of the run.

    Returns:
        A line for each, in the order data, model, adapter; empty if all hashes are the recorded ones.

    Raises:
        ConfigError: one of them is not there at all.
    """
    lines = []
    for name, before in _mapping(record.environment, "data").items():
        path = record.locate(name)
        if not path.exists():
            raise ConfigError(f'the data "{name}" of the run is not there; put it back, or start where the run started')
        if hash_tree(path) != before:
            lines.append(f'data "{name}" has changed since the run read it')
    model = _mapping(record.environment, "model")
    if model:
        lines += _differing("model", str(model.get("name")), model, _model_now(record, model))
    adapter = _mapping(record.environment, "init_adapter")
    if adapter and record.config.init_adapter is not None:
        now = describe_folder(record.config.init_adapter)
        lines += _differing("adapter", record.config.init_adapter, adapter, now)
    for name, expert in _mapping(record.environment, "experts").items():
        weights = record.locate(str(expert.get("path"))) / "adapter_model.safetensors"
        if not weights.is_file() or hash_tree(weights) != expert.get("sha256"):
            lines.append(f'expert "{name}" has changed since the run read it: {weights}')
    return lines


def other_surroundings(record: Record) -> list[str]:
    """Name versions, code and machine that differ from those of the run; results may then differ in their last bits.

    Args:
        record: of the run.
    """
    now, before = describe_process(), record.environment
    lines = []
    if before.get("python") != now["python"]:
        lines.append(f"python was {before.get('python')}, is {now['python']}")
    versions = _mapping(before, "versions")
    lines += [
        f"{name} was {versions.get(name)}, is {version}"
        for name, version in now["versions"].items()
        if versions.get(name) != version
    ]
    was, current = _mapping(before, "git").get("commit"), (now["git"] or {}).get("commit")
    if was and current and was != current:
        lines.append(f"the git commit of the folder it was started in was {was[:12]}, is {current[:12]} here")
    machine, here = _mapping(before, "machine"), describe_machine()
    lines += [
        f"{name} was {machine.get(name)}, is {here[name]}" for name in _MACHINE if machine.get(name) != here[name]
    ]
    resumed = before.get("resumed") or []
    if any(_mapping(part, "versions") != versions for part in resumed if isinstance(part, dict)):
        lines.append("the run was resumed under other versions than it began with")
    if record.config.data.dataset is not None:
        lines.append(f'the Hub data set "{record.config.data.dataset}" is not hashed by a run: it may have changed')
    return lines


def _model_now(record: Record, before: Mapping[str, Any]) -> Mapping[str, Any]:
    name = record.config.model
    if record.config.scope == "head":
        return {"files": hash_model(name, record.config.trust_remote_code)}
    if "files" in before:
        return describe_folder(name)
    return {"commit": hash_model(name, record.config.trust_remote_code).get("commit")}


def _differing(what: str, name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """One line if hashes differ, with the first file that does."""
    if "files" not in before:
        if before.get("commit") != now.get("commit"):
            yield f'{what} "{name}" was commit {before.get("commit")}, is {now.get("commit")}'
        return
    was, current = _mapping(before, "files"), _mapping(now, "files")
    files = [file for file in dict.fromkeys((*was, *current)) if was.get(file) != current.get(file)]
    if files:
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        gone = f", which is not there in {Path(name)}" if files[0] not in current else ""
        yield f'{what} "{name}" has changed since the run read it: {files[0]}{more}{gone}'


def _mapping(told: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = told.get(key)
    return value if isinstance(value, dict) else {}
