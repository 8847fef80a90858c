"""Target `peft`: reloaded in vanilla PEFT, held against W0 + s B A, and merged in fp32 and bf16."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rmlora.errors import AdapterError
from rmlora.verify.base_model import BaseModel
from rmlora.verify.certificate import Check, within
from rmlora.verify.probe import allowed, answer, distance, probe
from rmlora.verify.subject import Subject
from rmlora.verify.update import update_of, weight_of, write_updates

METHOD = (
    "loaded by PeftModel.from_pretrained; outputs for random inputs held against W0 + s B A written into the weights, "
    "and against merge_and_unload in fp32 and in bf16; errors are largest differences over the largest output"
)
TOLERANCE = 1e-4
"""Of the largest output, in fp32; see `allowed`."""
BF16_TOLERANCE = 2e-2
"""Of the largest output, from fp32; twice what bf16 costs unmerged where that is more."""


def check_peft(subject: Subject, base: BaseModel) -> list[Check]:
    """Reload and merge an adapter in PEFT.

    Returns:
        Checks: complete weights, reload, merge in fp32, merge in bf16.

    Raises:
        AdapterError: base and adapter do not fit.
    """
    expected, without, missing = recompute(subject, base)
    model = reload(subject, base, torch.float32)
    inputs = probe(model)
    found = answer(model, inputs)
    merged = answer(merged_into_base(model), inputs)
    effect = distance(without, expected)
    limit = allowed(TOLERANCE, effect)
    told = f"without the adapter outputs differ by {effect:.1e}" if effect else "the adapter changes no output at all"
    return [
        weights_check(missing),
        within(
            "reload equals W0 + s B A, fp32",
            distance(found, expected),
            limit,
            told,
            "adapter_config.json asks for more than plain LoRA (DoRA, a bias, a start that moves the base); save it as "
            "plain LoRA, or merge it and ship the model",
        ),
        within(
            "merge_and_unload, fp32",
            distance(merged, found),
            limit,
            remedy="serve the adapter unmerged",
        ),
        _bf16(subject, base, expected),
    ]


def recompute(subject: Subject, base: BaseModel) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Return the outputs of W0 + s B A in fp32, those of W0 alone, and the parameters that come from nowhere."""
    model, missing = base.load()
    inputs = probe(model)
    without = answer(model, inputs)
    write_updates(model, subject.pairs)
    return answer(model, inputs), without, missing


def reload(subject: Subject, base: BaseModel, dtype: torch.dtype) -> Any:
    """Load base and adapter as any user of PEFT does.

    Raises:
        AdapterError: PEFT refuses them.
    """
    from peft import PeftModel

    model, _ = base.load(dtype)
    try:
        return PeftModel.from_pretrained(model, str(subject.path)).eval()
    except (ValueError, KeyError, RuntimeError, TypeError, ImportError) as error:
        reason = " ".join(str(error).split())[:300]
        raise AdapterError(f"PEFT cannot load {subject.path} on {base.class_name}: {reason}") from error


def merged_into_base(model: Any) -> Any:
    """Return the base with the adapter merged in; `model` is used up.

    Raises:
        AdapterError: PEFT cannot merge it.
    """
    try:
        return model.merge_and_unload().eval()
    except (ValueError, RuntimeError, NotImplementedError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise AdapterError(f"PEFT loads this adapter, but cannot merge it: {reason}") from error


def weights_check(missing: Sequence[str]) -> Check:
    """Make the check that every parameter comes from the base or from the adapter."""
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    return Check(
        "every weight is in the base or in the adapter",
        not missing,
        detail=f"drawn anew with every load: {missing[0]}{more}" if missing else "",
        remedy="train with that module in modules_to_save, so that it is saved" if missing else "",
    )


def _bf16(subject: Subject, base: BaseModel, expected: Tensor) -> Check:
    model = reload(subject, base, torch.bfloat16)
    inputs = probe(model)
    apart = answer(model, inputs)
    before = {pair.name: _base_weight(model, pair.name) for pair in subject.pairs}
    merged = merged_into_base(model)
    joined = answer(merged, inputs)
    off = []
    for pair in subject.pairs:
        wanted = update_of(merged, pair)
        got = weight_of(merged, pair.name).double() - before[pair.name].double()
        off.append(float((got - wanted).norm() / wanted.norm().clamp(min=1e-30)))
    unmerged = distance(apart, expected)
    told = (
        f"unmerged it is {unmerged:.1e}; what rounding leaves of dW is {statistics.median(off):.1%} off in the median "
        f"module, {max(off):.1%} in the worst"
    )
    return within(
        "merge_and_unload, bf16, from fp32",
        distance(joined, expected),
        max(BF16_TOLERANCE, 2 * unmerged),
        told,
        "serve it unmerged, or merge and serve in fp32",
    )


def _base_weight(model: Any, name: str) -> Tensor:
    layer = model.base_model.model.get_submodule(name)
    return torch.as_tensor(layer.get_base_layer().weight).detach().clone()
