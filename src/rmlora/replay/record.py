"""What a run's folder says it was: its configuration, and everything outside it that its numbers depended on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmlora.config import RunConfig
from rmlora.config_source import read_config, resolve
from rmlora.errors import ConfigError, StateError
from rmlora.run.folder import RunFolder


@dataclass(frozen=True)
class Record:
    """A finished run as it was recorded.

    Attributes:
        folder: of the run; nothing in it is changed.
        config: every setting; relative names of files are made whole where the folder the run was started in still is.
        environment: versions, machine, hashes of model and data.
        result: best and last epoch, names of the weight files.
    """

    folder: RunFolder
    config: RunConfig
    environment: dict[str, Any]
    result: dict[str, Any]

    def locate(self, name: str) -> Path:
        """Return where a file named by the run is: where the run was started, or else here."""
        return locate(name, self.environment)


def read_record(path: Path) -> Record:
    """Read a finished run: of a whole model, of the classification layer alone, or a cell of a study.

    Args:
        path: its folder.

    Raises:
        ConfigError: there is no finished run, or its settings are not those of this version.
        StateError: its record is damaged.
    """
    folder = RunFolder(path)
    if not path.is_dir():
        what = "is a file" if path.exists() else "is not there"
        raise ConfigError(f'"{path}" {what}; give the folder of a run that rmlora train or compare wrote')
    for file in (folder.config, folder.environment):
        if not file.is_file():
            hint = "; give one of the folders in its cells/" if (path / "study.yaml").is_file() else ""
            raise ConfigError(f'"{path}" has no {file.name}, so it holds no run that could be replayed{hint}')
    if not folder.result.is_file():
        raise ConfigError(f'the run in "{path}" is not finished; finish it: rmlora train {folder.config} --resume')
    environment, result = _read(folder.environment), _read(folder.result)
    config = resolve(read_config(folder.config), str(folder.config))
    return Record(folder, _placed(config, environment), environment, result)


def locate(name: str, environment: dict[str, Any]) -> Path:
    """Return where a file a run named is: below the folder the run was started in if it is there, else here.

    Example:
        >>> locate("train.jsonl", {"folder": "/no/such/folder"})
        PosixPath('train.jsonl')
    """
    path = Path(name).expanduser()
    begun = environment.get("folder")
    there = Path(begun) / path if isinstance(begun, str) else path
    return there if there.exists() else path


def _placed(config: RunConfig, environment: dict[str, Any]) -> RunConfig:
    """Make names of local files whole; the name of a Hub model or data set stays what it is."""
    sources = {name: getattr(config.data, name) for name in ("train", "eval", "eval_mismatched")}
    data = {name: str(locate(value, environment)) for name, value in sources.items() if value is not None}
    changes: dict[str, Any] = {"data": config.data.model_copy(update=data)}
    for name in ("model", "init_adapter"):
        value = getattr(config, name)
        if value is not None and (there := locate(value, environment)).is_dir():
            changes[name] = str(there)
    experts = [str(locate(expert, environment)) for expert in config.mixture.experts]
    changes["mixture"] = config.mixture.model_copy(update={"experts": experts})
    return config.model_copy(update=changes)


def _read(path: Path) -> dict[str, Any]:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise StateError(f'"{path}" is damaged, so what the run was is not known') from error
    if not isinstance(told, dict):
        raise StateError(f'"{path}" is damaged: expected an object, got a {type(told).__name__}')
    return told
