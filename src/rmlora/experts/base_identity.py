"""Whether adapters belong to one base model: by the hashes of its weights where they are known, else by its name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rmlora.errors import AdapterError
from rmlora.experts.expert import Expert, hash_file


@dataclass(frozen=True)
class Base:
    """A base model as far as it has to be recognised.

    Attributes:
        name: folder or Hub id.
        revision: commit of the Hub it came from, if it did.
        files: SHA-256 of its weights by file name, if it is a folder.
    """

    name: str
    revision: str | None = None
    files: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def identify_base(name: str, revision: str | None = None) -> Base:
    """Describe a base by its name, and by the hashes of its weights where it is a folder.

    Args:
        name: folder or Hub id.
        revision: commit, if known.

    Example:
        >>> identify_base("owner/model", "0f3c").as_json()
        {'name': 'owner/model', 'revision': '0f3c', 'files': {}}
    """
    folder = Path(name).expanduser()
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    return Base(name, revision, {file.name: hash_file(file) for file in files})


def refuse_other_base(experts: Sequence[Expert], base: Base) -> None:
    """Refuse experts of another model.

    A run of rmlora records the hashes of the base it trained on; they decide where they are there and the base is a
    folder. Else the names must be equal, or end in the same part: `./all-MiniLM-L6-v2` and
    `sentence-transformers/all-MiniLM-L6-v2` are taken for the same. A commit must be the same where both are known.

    Args:
        experts: opened.
        base: they shall work on.

    Raises:
        AdapterError: names the first expert that belongs to another base.
    """
    for expert in experts:
        trained_on = _recorded_files(expert)
        if trained_on and base.files:
            if trained_on != base.files:
                raise _other(expert, base, "whose weights have other hashes")
            continue
        if expert.base is not None and not same_name(expert.base, base.name):
            raise _other(expert, base, "which has another name (if it is the same, correct adapter_config.json)")
        commit = expert.folder.config.get("revision")
        if commit and base.revision and _is_commit(commit) and commit != base.revision:
            raise _other(expert, base, f"at commit {base.revision}, but it was trained at {commit}")


def same_name(a: str, b: str) -> bool:
    """Whether two names of models can mean the same one.

    Example:
        >>> same_name("./minilm", "owner/minilm"), same_name("bert-base", "bert-large")
        (True, False)
    """
    return Path(a).expanduser().resolve().name == Path(b).expanduser().resolve().name or Path(a).name == Path(b).name


def _other(expert: Expert, base: Base, why: str) -> AdapterError:
    return AdapterError(f'expert "{expert.path}" is an adapter of "{expert.base}", not of "{base.name}", {why}')


def _recorded_files(expert: Expert) -> dict[str, str]:
    """The hashes of the base's weights that rmlora noted when it trained an expert; empty where it did not."""
    try:
        told = json.loads((expert.path / "environment.json").read_text(encoding="utf-8"))
        files = told["model"]["files"]
        return {name: str(digest) for name, digest in files.items() if name.endswith(".safetensors")}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def _is_commit(revision: object) -> bool:
    return isinstance(revision, str) and len(revision) == 40 and set(revision) <= set("0123456789abcdef")
