"""How many parameters are left of an adapter when it is used: I, beside T that were trained."""

from __future__ import annotations

from pathlib import Path

import torch

from rmlora.run.plan import Counts


def count_inference(folder: Path, counts: Counts) -> dict[str, int]:
    """Count what a saved run needs at inference.

    Directions whose row of A or column of B is exactly zero, as pruning leaves them, do nothing and do not count. Of
    VeRA the vectors count; its shared projections are drawn from a key, saved or not.

    Args:
        folder: of the run, its weights saved.
        counts: of the parameters in training.

    Returns:
        `inference_adapter`, entries of A and B (and magnitudes) of the directions left, and `inference` (I): these
        and the head, or all that was trained where there is no adapter.
    """
    from safetensors import safe_open

    path = folder / "adapter_model.safetensors"
    if not path.is_file():
        return {"inference_adapter": 0, "inference": counts.trainable}
    total = 0
    with safe_open(path, "pt") as file:
        names = set(file.keys())
        for name in sorted(names):
            if ".lora_A." in name:
                A, B = file.get_tensor(name), _partner(file, name, names)
                used = _used(A, 0) if B is None else _used(A, 0) & _used(B, 1)
                total += int(used.sum()) * (A[0].numel() + (0 if B is None else B[:, 0].numel()))
            elif ".vera_lambda_" in name or ("lora_" in name and ".lora_B." not in name):
                total += file.get_tensor(name).numel()
    return {"inference_adapter": total, "inference": total + counts.head}


def _partner(file: object, name: str, names: set[str]) -> torch.Tensor | None:
    other = name.replace(".lora_A.", ".lora_B.")
    return file.get_tensor(other) if other in names else None  # type: ignore[attr-defined]


def _used(factor: torch.Tensor, side: int) -> torch.Tensor:
    """Which directions of a factor are not all zero; `side` is the axis that counts them."""
    return factor.ne(0).movedim(side, 0).flatten(1).any(1)
