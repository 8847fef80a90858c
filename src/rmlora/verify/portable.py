"""Rewriting an adapter into the profile every reader accepts: plain LoRA, one rank, one alpha, the head beside it."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rmlora.analysis.folder import CONFIG_NAME
from rmlora.analysis.stored import scale_of
from rmlora.errors import AdapterError
from rmlora.files import check_writable, write_text
from rmlora.prune_export import MOVES_BASE, PREFIX, alpha_of, free_folder, pairs_of, plain_form, write_adapter
from rmlora.verify.base_model import BaseModel
from rmlora.verify.probe import distance
from rmlora.verify.subject import HEAD_NAME, Subject, open_subject

TOLERANCE = 1e-6
_REFUSED = (
    "use_dora",
    "lora_bias",
    "alora_invocation_tokens",
    "trainable_token_indices",
    "layer_replication",
    "use_qalora",
    "use_bdlora",
    "kasa_config",
)
_USE_HEAD = """
## Loading this portable form

`{head}` holds what was trained whole beside the adapter, under the names of
{class_name}. Instead of any code above: put it into the base model
first, then load the adapter:

```python
from peft import PeftModel
from safetensors.torch import load_file
from transformers import {loader}

base = {loader}.from_pretrained("{name}"{labels})
base.load_state_dict(load_file("<this folder>/{head}"), strict=False)
model = PeftModel.from_pretrained(base, "<this folder>")
```
"""


@dataclass(frozen=True)
class Portable:
    """What `write_portable` wrote.

    Attributes:
        folder: where.
        r: the rank of every module.
        lora_alpha: the one alpha.
        padded: modules that got directions of zeros.
        rescaled: modules whose B was multiplied.
        head: parameters in `modules_to_save.safetensors`; empty if there is none.
        revision: the base's pinned revision, if one is known.
        error: largest difference of a dW over its largest entry, read back.
    """

    folder: Path
    r: int
    lora_alpha: float
    padded: int
    rescaled: int
    head: tuple[str, ...]
    revision: str | None
    error: float


def write_portable(subject: Subject, base: BaseModel, output: Path) -> Portable:
    """Rewrite an adapter: no rsLoRA, one rank (padded with zeros), one alpha, the revision pinned, the head beside it.

    The alpha is the one that gives most modules their scale as it is; of the others the ratio is multiplied into B, in
    fp32. Every dW is read back and compared before the folder appears.

    Args:
        subject: a LoRA or AdaLoRA adapter; not changed.
        base: its model; config.json is read where a head is moved.
        output: a folder that does not exist yet, or is empty.

    Raises:
        AdapterError: the adapter is no plain LoRA in other ways too (DoRA, biases, a start that moved the base), or
            `output` cannot be written.
    """
    target = free_folder(output)
    _refuse(subject)
    check_writable(target.parent)
    target.parent.mkdir(parents=True, exist_ok=True)
    config, tensors = plain_form(subject.adapter)
    keys = pairs_of(tensors)
    factors = {key: tensors[key] for pair in keys for key in pair}
    names = {a: a.removeprefix(PREFIX).rpartition(".lora_")[0] for a, _ in keys}
    scales = {a: scale_of(names[a], config)[1] for a, _ in keys}
    r = max(len(factors[a]) for a, _ in keys)
    scale = Counter(scales.values()).most_common(1)[0][0]
    padded = sum(len(factors[a]) < r for a, _ in keys)
    rescaled = sum(value != scale for value in scales.values())
    written = {key: value for a, b in keys for key, value in _uniform(a, b, factors, r, scales[a] / scale).items()}
    head = {name: tensor.contiguous() for name, tensor in subject.whole.items()}
    revision = config.get("revision") or _known_commit(subject.path)
    config |= {"r": r, "lora_alpha": alpha_of(r, scale, False), "rank_pattern": {}, "alpha_pattern": {}}
    config |= {"use_rslora": False, "modules_to_save": None, "revision": revision}
    if head:  # a task type would make PEFT ask for a saved head, and a pattern could now catch modules inside it
        config |= {"task_type": None, "auto_mapping": _mapping(base), "target_modules": sorted(names.values())}
        config |= {"layers_to_transform": None, "layers_pattern": None, "exclude_modules": None}
    with tempfile.TemporaryDirectory(prefix=".portable-", dir=target.parent) as place:
        made = Path(place) / "adapter"
        write_adapter(made, config, written, subject.path)
        _write_head(made, head, base)
        error = _compare(subject, made)
        if target.is_dir():
            target.rmdir()
        os.replace(made, target)
    return Portable(target, r, float(config["lora_alpha"]), padded, rescaled, tuple(sorted(head)), revision, error)


def _refuse(subject: Subject) -> None:
    config = subject.config
    asked = [name for name in _REFUSED if config.get(name)]
    if config.get("bias", "none") != "none":
        asked.append(f'bias="{config["bias"]}"')
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(MOVES_BASE):
        asked.append(f'init_lora_weights="{start}", which moved the base weights')
    if asked:
        raise AdapterError(
            f"{subject.path / CONFIG_NAME} has {' and '.join(asked)}: no rewriting makes plain LoRA of it; merge it "
            "and ship the model"
        )
    odd = sorted(key for key in subject.odd if ".lora_" in key and not key.endswith(("lora_A", "lora_B", "lora_E")))
    if odd:
        raise AdapterError(f"{subject.path} holds {odd[0]}, which is neither A nor B: no plain LoRA can hold it")


def _uniform(a: str, b: str, factors: dict[str, Tensor], r: int, ratio: float) -> dict[str, Tensor]:
    A, B = factors[a], factors[b]
    if B.shape[1] != len(A):
        raise AdapterError(f"{a.removeprefix(PREFIX)} is a grouped convolution, whose factors cannot be padded")
    if ratio != 1.0:
        B = (B.double() * ratio).to(torch.promote_types(B.dtype, torch.float32))
    A = torch.cat([A, A.new_zeros(r - len(A), *A.shape[1:])])
    B = torch.cat([B, B.new_zeros(len(B), r - B.shape[1], *B.shape[2:])], dim=1)
    return {a: A.contiguous(), b: B.contiguous()}


def _known_commit(folder: Path) -> str | None:
    """The Hub commit that a run of rmlora wrote down, if it did."""
    try:
        model = json.loads((folder / "environment.json").read_text(encoding="utf-8"))["model"]
        return None if model.get("commit") is None else str(model["commit"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _mapping(base: BaseModel) -> dict[str, str]:
    """The class of the base, as PEFT notes it where no task type says so."""
    import transformers

    name = base.class_name
    mapping = getattr(getattr(transformers, name, None), "_model_mapping", None)  # AutoModelFor... -> BertFor...
    if mapping is not None:
        found = mapping[type(base.config)]
        name = (found[0] if isinstance(found, tuple) else found).__name__
    return {"base_model_class": name, "parent_library": "transformers"}


def _write_head(folder: Path, head: dict[str, Tensor], base: BaseModel) -> None:
    card = folder / "README.md"
    if not head:
        return
    from safetensors.torch import save_file

    save_file(head, folder / HEAD_NAME, metadata={"format": "pt"})
    labels = "".join(f", {name}={value}" for name, value in base.head_size().items())
    told = {"head": HEAD_NAME, "class_name": _mapping(base)["base_model_class"], "name": base.name, "labels": labels}
    text = card.read_text(encoding="utf-8") if card.is_file() else "# Adapter\n"
    text = re.sub(r"(?ms)^## Verified\s*$.*?(?=^## |\Z)", "", text)  # it was about other files
    write_text(card, text.rstrip() + "\n" + _USE_HEAD.format(loader=base.class_name, **told))


def _compare(subject: Subject, made: Path) -> float:
    """Hold every dW that was written against the one that was read."""
    before = {pair.name: pair.scale * (pair.B.double() @ pair.A.double()) for pair in subject.pairs}
    errors = {
        p.name: distance(p.scale * (p.B.double() @ p.A.double()), before[p.name]) for p in open_subject(made).pairs
    }
    worst = max(errors, key=lambda name: errors[name])
    if errors.keys() != before.keys() or not errors[worst] <= TOLERANCE:
        raise AdapterError(f"dW of {worst} came out {errors[worst]:.1e} away: the rewritten adapter was thrown away")
    return errors[worst]
