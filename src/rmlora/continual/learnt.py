"""What one task hands to the next: factors, what of them is finished, and the classification layer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rmlora.errors import StateError
from rmlora.files import write_bytes
from rmlora.pairs import Factors
from rmlora.transforms.scale_blocks import normalise_direction


@dataclass(frozen=True)
class Learnt:
    """A model after a task, without what is frozen anyway.

    Attributes:
        factors: by module name, A `(r, d_in)` and B `(d_out, r)`; of sd-lora the blocks of all tasks side by side, the
            earlier ones normalised, the last one as it was trained.
        rest: by name, every other trained parameter: the classification layer, or all of them without an adapter.
        widths: of sd-lora, directions of each block; empty for one adapter trained on.
        magnitudes: of sd-lora, of each block, as learned in the last task.
        absorbed: of sd-lora, by module name what dropped blocks added to each block's magnitude there.
    """

    factors: dict[str, Factors]
    rest: dict[str, Tensor]
    widths: tuple[int, ...] = ()
    magnitudes: tuple[float, ...] = ()
    absorbed: dict[str, tuple[float, ...]] = field(default_factory=dict)

    def frozen(self) -> Learnt:
        """Return it with the last block normalised, too: the directions the next task finds."""
        width = self.widths[-1]
        return replace(self, factors={name: _freeze_last(own, width) for name, own in self.factors.items()})

    def folded(self) -> Learnt:
        """Return it with magnitudes multiplied into B: plain LoRA with the same outputs."""
        return replace(self, factors={name: self._fold(name, own) for name, own in self.factors.items()})

    def _fold(self, name: str, own: Factors) -> Factors:
        absorbed = self.absorbed.get(name, (0.0,) * len(self.widths))
        scale = torch.tensor(self.magnitudes) + torch.tensor(absorbed)
        return Factors(own.A, own.B * scale.repeat_interleave(torch.tensor(self.widths)).to(own.B))


def capture(model: Any, handle: Any, told: Mapping[str, Any] | None = None) -> Learnt:
    """Copy what was trained.

    Args:
        model: on any device; not changed.
        handle: of the attached method; None without an adapter.
        told: `widths`, `magnitudes` and `absorbed` of sd-lora, whose live factors are taken; without them factors are
            folded, as they would be saved.

    Returns:
        Copies on the CPU.
    """
    if handle is None:
        factors, own = {}, set()
    else:
        folded = None if told else handle.fold()
        live = {p.name: (p.A, p.B) if folded is None else folded[p.name] for p in handle.pairs}
        factors = {name: Factors(_copy(A), _copy(B)) for name, (A, B) in live.items()}
        own = {id(p) for pair in handle.pairs for p in pair.parameters}
    rest = {n: _copy(p) for n, p in model.named_parameters() if p.requires_grad and id(p) not in own}
    return Learnt(factors, rest, **(told or {}))


@torch.no_grad()
def put_back(learnt: Learnt, model: Any, handle: Any) -> None:
    """Write what was learnt into a new model, in place.

    Args:
        learnt: its factors fill the first directions of each pair; directions behind them stay as they are.
        model: with the same modules.
        handle: of the attached method; None without an adapter.

    Raises:
        StateError: a parameter or a module is not there.
    """
    parameters = dict(model.named_parameters())
    for name, value in learnt.rest.items():
        if name not in parameters:
            raise StateError(
                f"the earlier tasks trained {name}, which this model does not have; start with --overwrite"
            )
        parameters[name].copy_(value)
    pairs = {pair.name: pair for pair in handle.pairs} if handle is not None else {}
    for name, factors in learnt.factors.items():
        if name not in pairs:
            raise StateError(f"the earlier tasks adapted {name}, which this model does not; start with --overwrite")
        A, B = pairs[name].parameters
        width = len(factors.A)
        A.data[:width] = factors.A.view(width, *A.shape[1:]).to(A)
        B.data[:, :width] = factors.B.view(len(B), width, *B.shape[2:]).to(B)


def write_learnt(path: Path, learnt: Learnt) -> None:
    """Write it as safetensors, whole or not at all."""
    from safetensors.torch import save

    tensors = {f"rest|{name}": value for name, value in learnt.rest.items()}
    for name, factors in learnt.factors.items():
        tensors |= {f"A|{name}": factors.A, f"B|{name}": factors.B}
    told = {"widths": learnt.widths, "magnitudes": learnt.magnitudes, "absorbed": learnt.absorbed}
    write_bytes(path, save(tensors, metadata={"told": json.dumps(told)}))


def read_learnt(path: Path) -> Learnt:
    """Read it back, bit for bit.

    Raises:
        StateError: the file is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            told = json.loads((file.metadata() or {})["told"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise StateError(f'"{path}" is missing or damaged; start the run anew with --overwrite') from error
    names = [key.removeprefix("A|") for key in tensors if key.startswith("A|")]
    return Learnt(
        factors={name: Factors(tensors[f"A|{name}"], tensors[f"B|{name}"]) for name in names},
        rest={key.removeprefix("rest|"): value for key, value in tensors.items() if key.startswith("rest|")},
        widths=tuple(told["widths"]),
        magnitudes=tuple(told["magnitudes"]),
        absorbed={name: tuple(values) for name, values in told["absorbed"].items()},
    )


def _copy(value: Tensor) -> Tensor:
    return value.detach().cpu().clone().contiguous()


def _freeze_last(factors: Factors, width: int) -> Factors:
    start = len(factors.A) - width
    last = normalise_direction(Factors(factors.A[start:], factors.B[:, start:]))
    return Factors(torch.cat([factors.A[:start], last.A]), torch.cat([factors.B[:, :start], last.B], dim=1))
