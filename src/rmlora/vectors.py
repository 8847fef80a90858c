"""PEFT's VeRA model as pairs: two trained vectors per module, read as the factors of plain LoRA they stand for."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from rmlora.combine import Chain
from rmlora.errors import AdapterError, AttachError
from rmlora.pairs import Factors, Pair, stable_name
from rmlora.saving import ADAPTER_FILE


def plain_factors(d: Tensor, b: Tensor, A: Tensor, B: Tensor, d_in: int) -> Factors:
    """Return the factors of plain LoRA that VeRA's vectors stand for: diag(d) A and diag(b) B, at scale 1.

    Args:
        d: `(n, r)`, a number for each direction of each module.
        b: `(n, d_out)`, a number for each output.
        A: `(r, widest d_in)`, shared; a module of `d_in` inputs uses the first `d_in` columns.
        B: `(widest d_out, r)`, shared; a module of `d_out` outputs uses the first `d_out` rows.
        d_in: inputs of these modules, 1 to the width of A.

    Returns:
        A `(n, r, d_in)` and B `(n, d_out, r)`; nothing is written in place.

    Example:
        >>> import torch
        >>> made = plain_factors(torch.ones(1, 2), torch.zeros(1, 3), torch.ones(2, 5), torch.ones(4, 2), d_in=4)
        >>> made.A.shape, made.B.shape
        (torch.Size([1, 2, 4]), torch.Size([1, 3, 2]))

    Source:
        VeRA, arXiv:2310.11454, as PEFT implements it.
    """
    return Factors(d.unsqueeze(2) * A[:, :d_in], b.unsqueeze(2) * B[: b.shape[1]])


@dataclass(frozen=True, eq=False)
class VectorPair(Pair):
    """A module of PEFT's VeRA.

    `parameters` are the vectors that learn, d `(r,)` and b `(d_out,)`; `A` and `B` are computed from them and from the
    shared projections at every use.
    """

    min_dim: ClassVar[int] = 1
    kind: ClassVar[str] = "VERA"

    @property
    def parameters(self) -> tuple[nn.Parameter, nn.Parameter]:
        """The vectors d and b."""
        return self.layer.vera_lambda_d[self.adapter], self.layer.vera_lambda_b[self.adapter]  # type: ignore[index,return-value]

    @property
    def A(self) -> Tensor:  # noqa: N802
        """diag(d) A `(r, d_in)`."""
        return self._factors()[0]

    @property
    def B(self) -> Tensor:  # noqa: N802
        """diag(b) B `(d_out, r)`."""
        return self._factors()[1]

    @property
    def scale(self) -> float:
        """1: VeRA has no scale."""
        return 1.0

    @property
    def shapes(self) -> Hashable:
        """What pairs of one stack share, the number of inputs among it."""
        return (*(parameter.shape for parameter in self.parameters), self.layer.in_features)

    def _factors(self) -> tuple[Tensor, Tensor]:
        d, b = self.parameters
        layer: Any = self.layer
        A, B = (shared[self.adapter].to(d.device) for shared in (layer.vera_A, layer.vera_B))
        made = plain_factors(d.unsqueeze(0), b.unsqueeze(0), A, B, layer.in_features)
        return made.A[0], made.B[0]


def find_vector_pairs(model: nn.Module, adapter_name: str | None = None) -> tuple[VectorPair, ...]:
    """Find the modules of one VeRA adapter.

    Args:
        model: a PEFT model made with `VeraConfig`.
        adapter_name: which adapter; None means the only one.

    Raises:
        AttachError: there is no VeRA, there are several adapters and none was named, or not the one that was.
    """
    layers = [(name, module) for name, module in model.named_modules() if hasattr(module, "vera_lambda_d")]
    known = sorted({adapter for _, layer in layers for adapter in layer.vera_lambda_d})
    if not known:
        raise AttachError("rmlora.vera() found no VeRA modules; wrap the model first with peft.VeraConfig")
    if adapter_name is None and len(known) > 1:
        raise AttachError(f"{len(known)} VeRA adapters are on this model ({known}); name one with adapter_name=")
    adapter = adapter_name or known[0]
    if adapter not in known:
        raise AttachError(f'no VeRA adapter "{adapter}" on this model; it has {known}')
    return tuple(
        VectorPair(stable_name(name), layer, adapter, ()) for name, layer in layers if adapter in layer.vera_lambda_d
    )


def refuse_hooks(method: Chain) -> Chain:
    """Return a method for VeRA; refuse one with links that act on A and B, which do not learn here.

    Raises:
        AttachError: it has such a link.
    """
    if method.hooks():
        acting = next(type(link).__name__ for link in method.links if link.hooks())
        raise AttachError(
            f"{acting} acts on A and B, which VeRA shares and freezes; attach rmlora.vera() alone, and mask d "
            "with rmlora.mask_axes"
        )
    return method


def write_plain_form(model: Any, pairs: Sequence[Pair], folder: Path) -> None:
    """Write a VeRA adapter as plain LoRA with the same outputs: A = diag(d) A, B = diag(b) B, scale 1, exactly.

    Args:
        model: the PEFT model; not changed.
        pairs: its modules.
        folder: exists.

    Raises:
        AdapterError: the adapter trains biases, which are named otherwise in LoRA.
    """
    from peft import LoraConfig, get_peft_model_state_dict
    from safetensors.torch import save_file

    adapter = pairs[0].adapter
    config = model.peft_config[adapter]
    if config.bias != "none":
        raise AdapterError(f'VeRA with bias="{config.bias}" has no plain form here; train with bias="none"')
    state = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    tensors = {key: value for key, value in state.items() if ".vera_" not in key}
    paths = {id(module): name for name, module in model.named_modules()}
    for pair in pairs:
        for side, factor in (("lora_A", pair.A), ("lora_B", pair.B)):
            tensors[f"{paths[id(pair.layer)]}.{side}.weight"] = factor
    plain = LoraConfig(
        r=config.r,
        lora_alpha=config.r,
        lora_dropout=config.vera_dropout,
        target_modules=config.target_modules,
        modules_to_save=config.modules_to_save,
        layers_to_transform=config.layers_to_transform,
        layers_pattern=config.layers_pattern,
        fan_in_fan_out=config.fan_in_fan_out,
        task_type=config.task_type,
        inference_mode=True,
    )
    plain.base_model_name_or_path = config.base_model_name_or_path
    plain.save_pretrained(str(folder))
    whole = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    save_file(whole, folder / ADAPTER_FILE, metadata={"format": "pt"})
