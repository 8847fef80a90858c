"""PRILoRA's ranks: more directions the deeper a module lies, at the same mean."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from rmlora.errors import ConfigError


def linear_ranks(
    model: nn.Module,
    target_modules: str | Sequence[str],
    r: int,
    alpha: float | None = None,
    *,
    ratio: float = 3.0,
    use_rslora: bool = False,
) -> dict[str, dict[str, Any]]:
    """Return PEFT patterns under which ranks grow linearly from the first block to the last, with mean `r`.

    Give the same `r`, `lora_alpha` and `use_rslora` to the configuration: alphas are chosen so that the scale of every
    module is that of a module with `r` directions.

    Args:
        model: the model without adapter; its repeated blocks, in the order they are written, are the depth.
        target_modules: as PEFT takes them: names, or ends of names, or one regular expression for the whole name.
        r: mean number of directions over blocks, >= 1.
        alpha: lora_alpha, > 0; None is 2 r.
        ratio: rank of the last block over that of the first, > 0; 1 gives all the same, below 1 they fall.
        use_rslora: whether the scale is alpha / sqrt(r).

    Returns:
        `rank_pattern` and `alpha_pattern`, by full module name, for `LoraConfig(**linear_ranks(...))`. Modules outside
        repeated blocks are left out, and so have `r`.

    Raises:
        ConfigError: a value is out of range, the first block would have no direction, nothing matches, or the modules
            lie in fewer than two blocks.

    Example:
        >>> layers = nn.ModuleList(nn.ModuleDict({"up": nn.Linear(8, 8)}) for _ in range(3))
        >>> linear_ranks(nn.ModuleDict({"layers": layers}), ["up"], r=4)["rank_pattern"]
        {'layers.0.up': 2, 'layers.1.up': 4, 'layers.2.up': 6}

    Source:
        PRILoRA, arXiv:2401.11316, abstract: the rank grows linearly with depth. Deviation: the default ratio is ours.
    """
    if r < 1 or not ratio > 0.0 or (alpha is not None and not alpha > 0.0):
        raise ConfigError(
            f"linear_ranks needs r >= 1, ratio > 0 and alpha > 0, got r={r}, ratio={ratio}, alpha={alpha}"
        )
    names = _targets(model, target_modules)
    blocks = _blocks(model, names)
    depth = list(dict.fromkeys(blocks.values()))
    if len(depth) < 2:
        raise ConfigError(
            f"ranks cannot grow with depth: {len(names)} target modules such as {names[0]} do not lie in two or more "
            "repeated blocks; give the same rank to all"
        )
    ranks = dict(zip(depth, _ladder(r, ratio, len(depth)), strict=True))
    rank_pattern = {name: ranks[block] for name, block in blocks.items()}
    whole = 2.0 * r if alpha is None else float(alpha)
    alpha_pattern = {n: _plain(whole * (k / r) ** (0.5 if use_rslora else 1.0)) for n, k in rank_pattern.items()}
    return {"rank_pattern": rank_pattern, "alpha_pattern": alpha_pattern}


def _ladder(r: int, ratio: float, num: int) -> list[int]:
    """Whole ranks on a line with mean exactly r: each and its mirror image add up to 2 r."""
    first = 2.0 * r / (1.0 + ratio)
    step = (ratio * first - first) / (num - 1)
    lower = [round(first + step * i) for i in range(num // 2)]
    if lower and not 1 <= min(lower) <= max(lower) <= 2 * r - 1:
        raise ConfigError(
            f"ratio={ratio:g} at r={r} leaves a block without directions; take a ratio nearer 1 or more r"
        )
    return [*lower, *([r] * (num % 2)), *(2 * r - rank for rank in reversed(lower))]


def _targets(model: nn.Module, target_modules: str | Sequence[str]) -> list[str]:
    names = [name for name, _ in model.named_modules() if name]
    if isinstance(target_modules, str):
        found = [name for name in names if re.fullmatch(target_modules, name)]
    else:
        found = [n for n in names if any(n == part or n.endswith(f".{part}") for part in target_modules)]
    if not found:
        raise ConfigError(
            f"linear_ranks: no module of {type(model).__name__} matches target_modules={target_modules!r}"
        )
    return found


def _blocks(model: nn.Module, names: Sequence[str]) -> dict[str, str]:
    """The repeated block each module lies in: a child of the outermost list that has several with targets."""
    inside: dict[str, list[str]] = {}
    for name in names:
        parts = name.split(".")
        lists = [i for i in range(len(parts)) if _is_list(model.get_submodule(".".join(parts[:i])))]
        inside[name] = [".".join(parts[: i + 1]) for i in lists]
    children: dict[str, set[str]] = {}
    for prefix in (prefix for prefixes in inside.values() for prefix in prefixes):
        children.setdefault(prefix.rpartition(".")[0], set()).add(prefix)
    found = {
        name: [p for p in prefixes if len(children[p.rpartition(".")[0]]) > 1] for name, prefixes in inside.items()
    }
    return {name: prefixes[0] for name, prefixes in found.items() if prefixes}


def _is_list(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList | nn.Sequential)


def _plain(value: float) -> int | float:
    return int(value) if value.is_integer() else value
