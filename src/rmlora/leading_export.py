"""Exporting an adapter at a lower rank: the first directions of every module, scaled as DyLoRA trains them."""

from __future__ import annotations

from pathlib import Path

from rmlora.analysis.folder import open_adapter
from rmlora.analysis.stored import scale_of
from rmlora.errors import AdapterError
from rmlora.prune_export import PREFIX, alpha_of, free_folder, pairs_of, plain_form, with_ranks, write_adapter


def export_leading(folder: str | Path, output: str | Path, rank: int) -> dict[str, int]:
    """Write an adapter of rank `rank` made of the first directions of a saved one, as plain LoRA.

    Only for adapters whose directions are ordered, as DyLoRA orders them: of any other the first directions are as good
    as any. The scale becomes that of the saved adapter times r / rank, which is what DyLoRA trains at that rank: with
    PEFT's alpha / r, alpha / rank. Alpha and rank stand in the configuration, so PEFT alone loads it.

    Args:
        folder: a saved LoRA adapter; not changed.
        output: a folder that does not exist yet, or is empty. It appears whole or not at all.
        rank: directions to keep, 1 to the largest r; a module with fewer keeps its own, at its own scale.

    Returns:
        The rank of each module as written, by its name.

    Raises:
        AdapterError: `rank` is out of range, `folder` is no such adapter, or `output` holds something already.

    Example:
        >>> import torch
        >>> from peft import LoraConfig, get_peft_model
        >>> model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(4, 4)), LoraConfig(r=3, target_modules=["0"]))
        >>> model.save_pretrained("whole")
        >>> export_leading("whole", "narrow", rank=2)
        {'0': 2}

    Source:
        DyLoRA, arXiv:2210.07558: an adapter that is used at any rank up to its own.
    """
    adapter, target = open_adapter(folder), free_folder(output)
    config, tensors = plain_form(adapter)
    pairs = pairs_of(tensors)
    largest = max((len(tensors[key]) for key, _ in pairs), default=0)
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= largest:
        raise AdapterError(f"rank={rank}; {adapter.path} can be truncated to 1 to {largest} directions")
    wanted: dict[str, tuple[int, float]] = {}
    for a_key, b_key in pairs:
        name = a_key.removeprefix(PREFIX).rpartition(".lora_")[0]
        A, B = tensors[a_key], tensors[b_key]
        if B.shape[1] != len(A):
            raise AdapterError(f"{name} is a grouped convolution, whose A and B form no directions")
        kept = min(rank, len(A))
        wanted[name] = kept, scale_of(name, config)[1] * len(A) / kept
        tensors[a_key], tensors[b_key] = A[:kept].contiguous(), B[:, :kept].contiguous()
    scale = next(scale for kept, scale in wanted.values() if kept == rank)
    config |= {"r": rank, "lora_alpha": alpha_of(rank, scale, bool(config.get("use_rslora")))}
    config |= {"rank_pattern": {}, "alpha_pattern": {}}
    write_adapter(target, with_ranks(config, wanted), tensors, adapter.path)
    return {name: kept for name, (kept, _) in wanted.items()}
