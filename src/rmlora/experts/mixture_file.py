"""A mixture on disk: its gates and heads, and what experts and base they were trained for."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rmlora.errors import AdapterError
from rmlora.experts.base_identity import Base, identify_base, refuse_other_base, same_name
from rmlora.experts.expert import Expert, open_experts
from rmlora.experts.mixture import Mixture, mix_experts
from rmlora.files import write_bytes, write_text

GATES, ABOUT = "gates.safetensors", "mixture.json"
_FORMAT = 1


def save_mixture(mixture: Mixture, folder: str | Path, base: Base) -> list[str]:
    """Write gates.safetensors (gates, heads) and mixture.json (experts, base, settings); experts stay where they are.

    Args:
        mixture: not changed.
        folder: made if it is not there; both files are written whole.
        base: the model, from `identify_base`.

    Returns:
        Names of the files.
    """
    from safetensors.torch import save

    folder = Path(folder)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in mixture.state_dict().items()}
    about = {
        "format": _FORMAT,
        "base": base.as_json(),
        "experts": [_reference(expert, folder) for expert in mixture.experts],
        "blocks": list(mixture.blocks),
        "heads": list(mixture.heads),
        "balance": mixture.balance,
    }
    write_bytes(folder / GATES, save(tensors, metadata={"format": "pt"}))
    write_text(folder / ABOUT, json.dumps(about, indent=2) + "\n")
    return [GATES, ABOUT]


def load_mixture(
    model: nn.Module,
    folder: str | Path,
    *,
    experts: Mapping[str, str | Path] | Sequence[str | Path] | None = None,
    without: Iterable[str | int] = (),
) -> Mixture:
    """Load a saved mixture onto its base.

    Args:
        model: the base, without adapters, its head of the size that was trained; changed in place.
        folder: that `save_mixture`, or a run with scope=mixture, wrote.
        experts: where they are: all in order, or some by name; the others, or None for all, are looked for where
            they were, from the folder and then by the full path.
        without: experts to be masked, by name or index; see `Mixture.without`.

    Returns:
        The mixture, in evaluation mode.

    Raises:
        AdapterError: the folder holds no mixture; an expert is missing, has changed since, or does not fit; the
            model is another base.
        MethodError: `without` names no expert.
    """
    folder = Path(folder)
    about = read_about(folder)
    found = find_experts(about, folder, experts)
    base = Base(**about["base"])
    refuse_other_base(found, base)
    _refuse_other_model(model, base)
    tensors = _read_tensors(folder / GATES)
    width = len(tensors["gates.0.weight"]) // len(found) if "gates.0.weight" in tensors else None
    mixture = mix_experts(model, found, heads=about["heads"], balance=float(about["balance"]), width=width)
    if list(mixture.blocks) != about["blocks"]:
        raise AdapterError(f'"{folder}" mixes {about["blocks"][:3]}..., the model has {list(mixture.blocks)[:3]}...')
    _fill(mixture, tensors, folder)
    mixture.without = tuple(without)
    return mixture.eval()


def read_about(folder: Path) -> dict[str, Any]:
    """Read mixture.json.

    Raises:
        AdapterError: it is not there, or damaged.
    """
    path = folder / ABOUT
    if not path.is_file():
        raise AdapterError(f'"{folder}" has no {ABOUT}, so it holds no mixture; give a run with mixture.combine=gates')
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        experts = [(str(e["name"]), str(e["path"]), str(e["beside"]), str(e["sha256"])) for e in told["experts"]]
        Base(**told["base"])
        whole = told["format"] == _FORMAT and experts and all(isinstance(told[n], list) for n in ("blocks", "heads"))
        float(told["balance"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise AdapterError(f'"{path}" is damaged or of another version; copy it again') from error
    if not whole:
        raise AdapterError(f'"{path}" is damaged or of another version; copy it again')
    return dict(told)


def find_experts(
    about: Mapping[str, Any], folder: Path, given: Mapping[str, str | Path] | Sequence[str | Path] | None = None
) -> list[Expert]:
    """Open the experts of a saved mixture, and hold them to their hashes.

    Args:
        about: from `read_about`.
        folder: of the mixture.
        given: as for `load_mixture`.

    Raises:
        AdapterError: one is not there or has changed, or `given` does not match.
    """
    told = about["experts"]
    names = [entry["name"] for entry in told]
    if given is not None and not isinstance(given, Mapping):
        if len(given) != len(names):
            raise AdapterError(f"{len(given)} experts were given, the mixture has {len(names)}: {', '.join(names)}")
        given = dict(zip(names, given, strict=True))
    unknown = next((name for name in given or {} if name not in names), None)
    if unknown is not None:
        raise AdapterError(f'the mixture has no expert "{unknown}"; it has {", ".join(names)}')
    paths = [(given or {}).get(entry["name"]) or _place(entry, folder) for entry in told]
    found = []
    for entry, expert in zip(told, open_experts(paths), strict=True):
        if expert.sha256 != entry["sha256"]:
            raise AdapterError(
                f'expert "{entry["name"]}" at "{expert.path}" has changed since the mixture was trained: its weights '
                "have another hash; put it back, or train the mixture again"
            )
        found.append(Expert(entry["name"], expert.folder, expert.sha256))
    return found


def _reference(expert: Expert, folder: Path) -> dict[str, str]:
    full = os.path.abspath(expert.path)
    return {
        "name": expert.name,
        "path": full,
        "beside": os.path.relpath(full, os.path.abspath(folder)),
        "sha256": expert.sha256,
    }


def _place(entry: Mapping[str, str], folder: Path) -> Path:
    for path in (folder / entry["beside"], Path(entry["path"])):
        if path.is_dir():
            return path
    raise AdapterError(
        f'expert "{entry["name"]}" is not at "{entry["path"]}" any more; say where it is: '
        f'load_mixture(..., experts={{"{entry["name"]}": folder}})'
    )


def _refuse_other_model(model: nn.Module, base: Base) -> None:
    """Refuse a model that came from somewhere else, as far as it says where from."""
    config = getattr(model, "config", None)
    name = getattr(config, "_name_or_path", "")
    if not name:
        return
    now = identify_base(str(name), getattr(config, "_commit_hash", None))
    if now.files and base.files:
        if now.files != base.files:
            raise AdapterError(f'the mixture is of "{base.name}"; the weights in "{name}" have other hashes')
    elif not same_name(str(name), base.name):
        raise AdapterError(f'the mixture is of "{base.name}", not of "{name}"; load that model')


def _read_tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise AdapterError(f'"{path}" is missing or damaged; copy the whole folder again') from error


def _fill(mixture: Mixture, tensors: dict[str, Tensor], folder: Path) -> None:
    own = mixture.state_dict()
    odd = next((name for name in (*own, *tensors) if name not in own or name not in tensors), None)
    if odd is not None:
        raise AdapterError(f'"{folder / GATES}" and the model disagree about "{odd}"; was it trained for this model?')
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise AdapterError(
                f'"{folder / GATES}": {name} is {tuple(tensor.shape)}, the model has {tuple(own[name].shape)}; load '
                "the base with as many labels as were trained"
            )
    mixture.load_state_dict(tensors)
