"""Parameters counted twice: what is trained at the start (T), and what is kept at inference (I)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from rmlora.errors import ConfigError


class Foldable(Protocol):
    """What has to be known of a method at work; the handle that `attach` returns knows it."""

    @property
    def num_learnt(self) -> int:
        """Entries that the method trains beside the model's parameters."""

    def fold(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Factors (A, B) of plain LoRA, by module name."""


@dataclass(frozen=True)
class ParameterCounts:
    """Entries of a model by what happens to them.

    Attributes:
        trained_adapter: entries of the adapter that get a gradient: A, B, AdaLoRA's E, SoRA's gates, DoRA's magnitudes,
            VeRA's vectors.
        kept_adapter: entries of A and B in directions that add something, magnitudes and vectors.
        head: entries that are trained and saved whole: pooler, classifier.
        base: trained entries of the pretrained model; not 0 only without an adapter.
    """

    trained_adapter: int
    kept_adapter: int
    head: int
    base: int

    @property
    def trained(self) -> int:
        """T with the head: all that gets a gradient."""
        return self.trained_adapter + self.head + self.base

    @property
    def kept(self) -> int:
        """I with the head: all that has to be stored beside the frozen base model."""
        return self.kept_adapter + self.head + self.base


def count_parameters(
    model: nn.Module, handle: Foldable | None = None, *, kept_r: float | None = None
) -> ParameterCounts:
    """Count what is trained and what is kept.

    Papers print T and I, some with the classification head and some without, so that one number says little: SoRA and
    AdaLoRA begin with more directions than they keep.

    Args:
        model: a PEFT model, or a plain one of which every entry with a gradient counts.
        handle: from `attach`; with it, directions that add nothing (a row of A or a column of B of zeros) are not kept.
            Meant for a trained adapter: before the first step B is zero, and nothing would be kept.
        kept_r: directions per module that are planned to be kept (AdaLoRA's target_r), where training is still to come.

    Raises:
        ConfigError: both `handle` and `kept_r` are given.

    Example:
        >>> from peft import LoraConfig, get_peft_model
        >>> config = LoraConfig(r=3, target_modules=["0"], modules_to_save=["1"])
        >>> model = get_peft_model(nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2)), config)
        >>> counts = count_parameters(model)
        >>> counts.trained_adapter, counts.head, counts.trained, counts.kept
        (36, 10, 46, 46)

    Source:
        RM-LoRA, arXiv:2407.12074, Tables 1 and 2 ("T/I params"): with the head in the first, without in the second.
    """
    if handle is not None and kept_r is not None:
        raise ConfigError("count_parameters takes handle (after training) or kept_r (before), not both")
    factors, other, vectors, head, base, per_direction = 0, 0, 0, 0, 0, 0
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or ".ranknum." in name or ".original_module." in name:
            continue
        if ".lora_A." in name or ".lora_B." in name or ".lora_embedding_" in name:
            factors += parameter.numel()
            rows = parameter.shape[1 if ".lora_B." in name or ".lora_embedding_B." in name else 0]
            per_direction += parameter.numel() // max(rows, 1)
        elif ".vera_lambda_" in name:
            vectors += parameter.numel()
        elif ".lora_" in name:
            other += parameter.numel()
        elif ".modules_to_save." in name:
            head += parameter.numel()
        else:
            base += parameter.numel()
    magnitudes = sum(p.numel() for name, p in model.named_parameters() if "lora_magnitude" in name and p.requires_grad)
    trained = factors + other + vectors + (0 if handle is None else handle.num_learnt)
    kept = factors if kept_r is None else round(kept_r * per_direction)
    if handle is not None and not vectors:  # VeRA folds into more than it keeps
        kept = sum(_useful_entries(A, B) for A, B in handle.fold().values())
    return ParameterCounts(trained, kept + magnitudes + vectors, head, base)


def check_same_inference_budget(
    counts: Mapping[str, ParameterCounts], *, with_head: bool = False, tolerance: float = 0.0
) -> None:
    """Refuse a comparison whose methods do not keep equally many parameters at inference.

    Args:
        counts: by the method's name in the comparison.
        with_head: count the head too, which hides differences between adapters.
        tolerance: largest allowed excess of the largest over the smallest, as a share of the smallest, >= 0. Methods
            that find their own ranks cannot meet 0.

    Raises:
        ConfigError: they differ by more; the largest and the smallest are named.

    Example:
        >>> lora, more = ParameterCounts(80, 80, 9, 0), ParameterCounts(160, 100, 9, 0)
        >>> check_same_inference_budget({"lora": lora, "adalora": more}, tolerance=0.25)
        >>> check_same_inference_budget({"lora": lora, "adalora": more})
        Traceback (most recent call last):
        ...
        rmlora.errors.ConfigError: adalora keeps 100 parameters at inference and lora 80 (25.0% more); ...
    """
    kept = {name: count.kept if with_head else count.kept_adapter + count.base for name, count in counts.items()}
    if not kept:
        return
    least, most = min(kept, key=kept.__getitem__), max(kept, key=kept.__getitem__)
    if kept[most] > kept[least] * (1.0 + tolerance):
        share = f"{kept[most] / kept[least] - 1.0:.1%} more" if kept[least] else "all more"
        raise ConfigError(
            f"{most} keeps {kept[most]:,} parameters at inference and {least} {kept[least]:,} ({share}); compare them "
            "at equal rank after pruning, or allow the difference with tolerance="
        )


def _useful_entries(A: Tensor, B: Tensor) -> int:
    """Entries of A `(r, d_in)` and B `(d_out, r)` in directions of which neither side is zero."""
    num = int((A.any(dim=1) & B.any(dim=0)).sum())
    return num * (A.shape[1] + B.shape[0])
