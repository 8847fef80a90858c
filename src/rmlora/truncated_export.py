"""Exporting an adapter at a smaller rank: the best update of that rank, and what it leaves out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rmlora.analysis.folder import open_adapter
from rmlora.analysis.stored import scale_of
from rmlora.errors import AdapterError
from rmlora.pairs import Factors
from rmlora.prune_export import PREFIX, free_folder, pairs_of, plain_form, with_ranks, write_adapter


@dataclass(frozen=True)
class TruncatedAdapter:
    """What `export_truncated` wrote, and how far its updates are from those it read.

    Attributes:
        folder: where it was written.
        before: directions of each module in the folder that was read, by the module's name.
        ranks: directions of each module as written.
        errors: `||dW - dW'||_F / ||dW||_F` of each module; 0 where dW is zero.
        error: the same over all modules together.
    """

    folder: Path
    before: dict[str, int]
    ranks: dict[str, int]
    errors: dict[str, float]
    error: float


def export_truncated(folder: str | Path, output: str | Path, rank: int) -> TruncatedAdapter:
    """Write an adapter as plain LoRA at a smaller rank: of every module the best update of that rank.

    Each module keeps its scale; ranks and alphas go into patterns. A module whose rank is `rank` or less is written as
    it is.

    Args:
        folder: a saved LoRA or AdaLoRA adapter; not changed.
        output: a folder that does not exist yet, or is empty. It appears whole or not at all.
        rank: largest rank to write, >= 1.

    Returns:
        The ranks, and the relative errors.

    Raises:
        AdapterError: `rank` is below 1, a module is a grouped convolution, `folder` is no such adapter, or `output`
            holds something already or cannot be written.

    Example:
        >>> from peft import LoraConfig, get_peft_model
        >>> model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(4, 4)), LoraConfig(r=3, target_modules=["0"]))
        >>> _ = torch.nn.init.ones_(model.base_model.model[0].lora_B["default"].weight.data)
        >>> model.save_pretrained("three")
        >>> done = export_truncated("three", "one", rank=1)
        >>> done.ranks, done.error < 1e-6
        ({'0': 1}, True)

    Source:
        Eckart and Young: the leading singular triplets are the best approximation in the Frobenius norm.
    """
    if rank < 1:
        raise AdapterError(f"rank={rank}; an adapter has at least one direction in every module: give 1 or more")
    adapter, target = open_adapter(folder), free_folder(output)
    config, tensors = plain_form(adapter)
    before, ranks, lost, whole = {}, {}, {}, {}
    for a_key, b_key in pairs_of(tensors):
        name = a_key.removeprefix(PREFIX).rpartition(".lora_")[0]
        A, B = tensors[a_key], tensors[b_key]
        if B.shape[1] != len(A):
            raise AdapterError(f"{name} is a grouped convolution, whose factors are no one product; prune it instead")
        scale = scale_of(name, config)[1]
        before[name] = len(A)
        small, sizes = truncate(Factors(A.flatten(1), B.flatten(1)), rank)
        whole[name] = scale**2 * float(sizes.sum())
        lost[name] = scale**2 * float(sizes[rank:].sum())
        if len(A) > rank:
            tensors[a_key] = small.A.to(A.dtype).reshape(-1, *A.shape[1:]).contiguous()
            tensors[b_key] = small.B.to(B.dtype).reshape(len(B), -1, *B.shape[2:]).contiguous()
        ranks[name] = len(tensors[a_key])
    wanted = {name: (ranks[name], scale_of(name, config)[1]) for name in ranks}
    write_adapter(target, with_ranks(config, wanted), tensors, adapter.path)
    errors = {name: _share(lost[name], whole[name]) for name in ranks}
    return TruncatedAdapter(target, before, ranks, errors, _share(sum(lost.values()), sum(whole.values())))


def truncate(factors: Factors, rank: int) -> tuple[Factors, Tensor]:
    """Return factors of the best approximation of B A of at most this rank, and all squared singular values of B A.

    Two thin QR factorisations and the SVD of an `(r, r)` matrix in float64; no `(d_out, d_in)` matrix is formed. The
    singular values are shared evenly between both sides.

    Args:
        factors: A `(r, d_in)` and B `(d_out, r)`; not changed.
        rank: >= 1.

    Example:
        >>> small, sizes = truncate(Factors(torch.eye(2), torch.diag(torch.tensor([3.0, 4.0]))), 1)
        >>> (small.B @ small.A).abs().sum().round().item(), sizes.tolist()
        (4.0, [16.0, 9.0])
    """
    left, upper = torch.linalg.qr(factors.B.double())
    right, lower = torch.linalg.qr(factors.A.double().mT)
    U, sigma, Vh = torch.linalg.svd(upper @ lower.mT, full_matrices=False)
    roots = sigma[:rank].sqrt()
    small = Factors(roots.unsqueeze(1) * (Vh[:rank] @ right.mT), (left @ U[:, :rank]) * roots)
    return small, sigma.square()


def _share(lost: float, whole: float) -> float:
    return (lost / whole) ** 0.5 if whole > 0.0 else 0.0
