"""Exporting only what an adapter uses: directions that add nothing are dropped, each module keeps its own rank."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rmlora.analysis.folder import AdapterFolder, open_adapter
from rmlora.analysis.stored import scale_of
from rmlora.errors import AdapterError

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
_SIDES = {".lora_A.weight": ".lora_B.weight", ".lora_embedding_A": ".lora_embedding_B"}
MOVES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Starts of A and B that PEFT takes off the base weights; it does so again where such an adapter is loaded."""
_ADALORA_ONLY = ("target_r", "init_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "total_step")


@dataclass(frozen=True)
class PrunedAdapter:
    """What `export_pruned` kept.

    Attributes:
        folder: where it was written.
        before: directions of each module in the folder that was read, by the module's name.
        ranks: directions of each module as written; 1 for a silent one.
        silent: modules of which nothing was left; they are written as one direction of zeros.
    """

    folder: Path
    before: dict[str, int]
    ranks: dict[str, int]
    silent: tuple[str, ...]

    @property
    def kept(self) -> int:
        """Directions that add something, over all modules."""
        return sum(self.ranks.values()) - len(self.silent)


def export_pruned(folder: str | Path, output: str | Path) -> PrunedAdapter:
    """Write an adapter without the directions that add nothing, as plain LoRA with equal outputs.

    A direction is dropped where its row of A or its column of B is exactly zero, as SoRA's shut gates and AdaLoRA's
    pruned triplets leave them. Ranks that differ from the configuration's go into `rank_pattern`, and the alphas that
    keep every module's scale go into `alpha_pattern`, under full module names. An adapter in AdaLoRA's own form has its
    values folded into A first.

    Args:
        folder: a saved LoRA or AdaLoRA adapter; not changed.
        output: a folder that does not exist yet, or is empty. It appears whole or not at all.

    Returns:
        The ranks, and the modules that are silent.

    Raises:
        AdapterError: `folder` is no such adapter, adapts `target_parameters` or moved its base (PiSSA); `output` holds
            something already or cannot be written.

    Example:
        >>> from peft import LoraConfig, get_peft_model
        >>> model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(4, 4)), LoraConfig(r=3, target_modules=["0"]))
        >>> _ = torch.nn.init.ones_(model.base_model.model[0].lora_B["default"].weight[:, :2].data)
        >>> model.save_pretrained("whole")
        >>> export_pruned("whole", "pruned").ranks
        {'0': 2}

    Source:
        SoRA, arXiv:2311.11696, Sec. 3 (dropping what a zero gate shuts); AdaLoRA, arXiv:2303.10512. That a module
        without directions keeps one of zeros is ours: PEFT has no rank 0.
    """
    adapter, target = open_adapter(folder), free_folder(output)
    config, tensors = plain_form(adapter)
    _refuse_moved_base(config)
    before, ranks, silent = {}, {}, []
    for a_key, b_key in pairs_of(tensors):
        name = a_key.removeprefix(PREFIX).rpartition(".lora_")[0]
        A, B = tensors[a_key], tensors[b_key]
        live = _live(A, B)
        before[name] = len(A)
        if not live.any():
            silent.append(name)
            live[0] = True
            A, B = torch.zeros_like(A), torch.zeros_like(B)
        tensors[a_key], tensors[b_key] = A[live].contiguous(), B[:, live[: B.shape[1]]].contiguous()
        ranks[name] = len(tensors[a_key])
    wanted = {name: (rank, scale_of(name, config)[1]) for name, rank in ranks.items()}
    write_adapter(target, with_ranks(config, wanted), tensors, adapter.path)
    return PrunedAdapter(target, before, ranks, tuple(silent))


def free_folder(output: str | Path) -> Path:
    """Return the path of a folder that does not exist yet, or is empty; raise `AdapterError` otherwise."""
    target = Path(output)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise AdapterError(f'"{target}" exists and is not an empty folder; choose another for the adapter')
    return target


def plain_form(adapter: AdapterFolder) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return an adapter's configuration and tensors as plain LoRA: AdaLoRA's values folded into A, its scale kept.

    Args:
        adapter: an open folder.

    Raises:
        AdapterError: it adapts `target_parameters`, whose factors are not one pair per module.
    """
    config, tensors = dict(adapter.config), adapter.tensors(adapter.keys)
    if config.get("target_parameters"):
        raise AdapterError(f"{adapter.path} adapts target_parameters, whose factors form no directions; prune nothing")
    if adapter.peft_type == "LORA":
        return config, tensors
    plain: dict[str, Tensor] = {key: value for key, value in tensors.items() if ".lora_" not in key}
    wanted: dict[str, tuple[int, float]] = {}
    for key, A in tensors.items():
        module, side, rest = key.rpartition(".lora_A")
        if side and not rest:
            wide, B = torch.promote_types(A.dtype, torch.float32), tensors[f"{module}.lora_B"]
            folded = (A.to(wide) * tensors[f"{module}.lora_E"].to(wide).view(-1, 1)).to(A.dtype)
            if not len(A):  # PEFT writes modules of rank 0, and reads none
                folded, B = A.new_zeros(1, A.shape[1]), B.new_zeros(len(B), 1)
            plain |= {f"{module}.lora_A.weight": folded, f"{module}.lora_B.weight": B}
            wanted[module.removeprefix(PREFIX)] = len(folded), scale_of(module.removeprefix(PREFIX), config)[1]
    rank = int(config["init_r"])
    scale = next(iter(wanted.values()))[1] if wanted else 1.0
    config = {key: value for key, value in config.items() if key not in _ADALORA_ONLY}
    config |= {"peft_type": "LORA", "r": rank, "lora_alpha": alpha_of(rank, scale, False), "use_rslora": False}
    return with_ranks(config | {"rank_pattern": {}, "alpha_pattern": {}}, wanted), plain


def with_ranks(config: dict[str, Any], wanted: dict[str, tuple[int, float]]) -> dict[str, Any]:
    """Return a LoRA configuration under which PEFT gives every module the wanted rank and scale.

    Args:
        config: adapter_config.json of plain LoRA; r and lora_alpha stay.
        wanted: (rank, scale) by the module's full name.

    Example:
        >>> config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}
        >>> patterned = with_ranks(config, {"q": (1, 2.0), "v": (4, 2.0)})
        >>> patterned["rank_pattern"], patterned["alpha_pattern"]
        ({'q': 1}, {'q': 2})
    """
    is_root = bool(config.get("use_rslora"))
    ranks = {key: rank for key, rank in (config.get("rank_pattern") or {}).items() if key not in wanted}
    alphas = dict(config.get("alpha_pattern") or {})
    while True:
        resolved = config | {"rank_pattern": ranks, "alpha_pattern": alphas}
        wrong = [name for name, aim in wanted.items() if name not in ranks and scale_of(name, resolved) != aim]
        if not wrong:
            return resolved
        # PEFT takes the first key that equals a module's name or its tail, so the longest have to come first. A key may
        # catch other modules by their tails: those then get keys of their own, in the next round.
        own = sorted([*(name for name in ranks if name in wanted), *wrong], key=len, reverse=True)
        ranks = {name: wanted[name][0] for name in own} | {k: v for k, v in ranks.items() if k not in wanted}
        ours = {name: alpha_of(*wanted[name], is_root) for name in own}
        alphas = ours | {k: v for k, v in alphas.items() if k not in ours}


def _refuse_moved_base(config: dict[str, Any]) -> None:
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(MOVES_BASE):
        raise AdapterError(
            f'this adapter began with init_lora_weights="{start}", which moved the base weights too; give '
            "handle.export the adapter as it was saved before training (start=), for plain LoRA"
        )


def alpha_of(rank: int, scale: float, is_root: bool) -> int | float:
    """The alpha that PEFT divides back to exactly this scale."""
    divisor = math.sqrt(rank) if is_root else rank
    alpha = scale * divisor
    near = (alpha, math.nextafter(alpha, math.inf), math.nextafter(alpha, -math.inf))
    alpha = next((value for value in near if value / divisor == scale), alpha)
    return int(alpha) if alpha.is_integer() else alpha


def pairs_of(tensors: dict[str, Tensor]) -> list[tuple[str, str]]:
    """Return the keys of A and B of every pair in an adapter's file."""
    found = []
    for key in tensors:
        for end, other in _SIDES.items():
            if key.endswith(end) and key.removesuffix(end) + other in tensors and ".base_layer." not in key:
                found.append((key, key.removesuffix(end) + other))
    return found


def _live(A: Tensor, B: Tensor) -> Tensor:
    """Which directions add something; all of a grouped convolution, whose rows and columns form none."""
    if B.shape[1] != len(A):
        return torch.ones(len(A), dtype=torch.bool)
    return A.flatten(1).any(dim=1) & B.transpose(0, 1).flatten(1).any(dim=1)


def write_adapter(target: Path, config: dict[str, Any], tensors: dict[str, Tensor], source: Path) -> None:
    """Write a folder beside the target, and rename it."""
    from safetensors.torch import save_file

    unfinished: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        save_file(tensors, unfinished / _WEIGHTS, metadata={"format": "pt"})
        (unfinished / _CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        if (source / "README.md").is_file():
            shutil.copyfile(source / "README.md", unfinished / "README.md")
        unfinished.chmod(0o755)
        os.replace(unfinished, target)
    except OSError as error:
        if unfinished is not None:
            shutil.rmtree(unfinished, ignore_errors=True)
        raise AdapterError(f'cannot write "{target}": {error.strerror}') from error
