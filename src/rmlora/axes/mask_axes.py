"""mask_axes: gradient masking as in GM-LoRA, for any adapter whose tensors have an axis of directions."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.optim import Optimizer

from rmlora.axes.axis_binding import AxisBinding, is_masked
from rmlora.axes.find_axes import find_axes, left_whole
from rmlora.bound_layers import bindings_of
from rmlora.errors import AttachError, MethodError
from rmlora.transforms import MaskDirections


class MaskedAxes:
    """What `mask_axes` returns: a view of the masks, and the way to end them.

    The masks live with the parameters, not with this handle: dropping it changes nothing. As a context manager it
    detaches at the end.
    """

    def __init__(self, model: nn.Module, binding: AxisBinding) -> None:
        self._binding = binding
        self._is_attached = True
        self.whole = left_whole(model, binding.axes)

    def __enter__(self) -> MaskedAxes:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._is_attached:
            self.detach()

    def __len__(self) -> int:
        return len(self._binding.axes)

    def __repr__(self) -> str:
        return f"MaskedAxes({len(self)} axes, step={self.step}, {self._binding.link!r})"

    @property
    def step(self) -> int:
        """Optimizer steps completed."""
        return self._binding.step

    @property
    def sizes(self) -> dict[str, int]:
        """Directions of each axis, by name."""
        return {axis.name: axis.r for axis in self._binding.axes}

    def kept(self) -> dict[str, list[int]]:
        """Return, for each axis, which directions learn at the coming step."""
        found = {}
        for axis in self._binding.axes:
            mask = self._binding.masks[axis]
            found[axis.name] = list(range(axis.r)) if mask is None else mask.nonzero().flatten().tolist()
        return found

    def bind(self, optimizer: Optimizer) -> None:
        """Say which optimizer trains the axes from now on, and take over the step it carries.

        Raises:
            AttachError: it holds none of the tensors.
            StateError: its checkpoint was written with another seed.
        """
        self._binding.bind(optimizer)

    def detach(self) -> None:
        """Take the masks off; the adapter is what it is.

        Raises:
            AttachError: it was detached already.
        """
        if not self._is_attached:
            raise AttachError("already detached; call rmlora.mask_axes again to go on with masks")
        self._is_attached = False
        self._binding.release()


def mask_axes(
    model: nn.Module,
    directions: int | float | Callable[[int], float] = 0.5,
    *,
    seed: int = 0,
    policy: str = "gradient",
    resample_steps: int = 1,
    mask_first_step: bool = True,
    adapter_name: str | None = None,
    optimizer: Optimizer | None = None,
) -> MaskedAxes:
    """Let only some directions of each module learn at a time, in any of several PEFT adapters.

    What a direction is depends on the tuner: row i of A with column i of B (LoRA), with value i (AdaLoRA); an index of
    one side of a Hadamard or Kronecker product (LoHa, LoKr); an entry of d (VeRA) or of the vector (IA3); a virtual
    token (prompt, prefix and p-tuning). What has no such axis is left whole and named by `handle.whole`: VeRA's b,
    DoRA's magnitudes, Kronecker factors without rank, heads.

    Masks act on gradients during backward, so a trainer's clipping sees them masked; they are drawn as `MaskDirections`
    draws them, count optimizer steps, and resume with the optimizer. For LoRA it equals `rmlora.gm_lora`, which is
    faster and combines with other links.

    Args:
        model: a PEFT model, or a module that contains one. Hooks are put on its parameters; a deep copy has none.
        directions: as in `MaskDirections`: a count >= 1 (at most that of every axis), a fraction in (0, 1], a schedule.
        seed: of the masks.
        policy: "gradient": masked directions have gradient 0, and the optimizer does with it what it does; "update":
            they keep their values exactly.
        resample_steps: optimizer steps between draws, >= 1.
        mask_first_step: whether the first optimizer step is masked.
        adapter_name: which adapter; None means the only one.
        optimizer: if it exists already; otherwise the first backward looks for the live one that holds the tensors.

    Returns:
        A handle: `kept()`, `sizes`, `whole`, `step`, `detach()`; a context manager.

    Raises:
        AttachError: no tensor has an axis of directions, or a method or a mask acts on the adapter already.
        MethodError: a value is out of range, or a count exceeds an axis.

    Example:
        >>> import torch
        >>> from peft import VeraConfig, get_peft_model
        >>> model = get_peft_model(nn.Sequential(nn.Linear(4, 3)), VeraConfig(r=8, target_modules=["0"]))
        >>> handle = mask_axes(model, directions=2)
        >>> model(torch.ones(1, 4)).sum().backward()
        >>> handle.sizes, len(handle.kept()["0"]), handle.whole
        ({'0': 8}, 2, ['0.vera_lambda_b.default'])

    Source:
        RM-LoRA, arXiv:2407.12074, Algorithm 1, which knows LoRA alone; what the other adapters' directions are is ours.
    """
    if policy not in ("gradient", "update"):
        raise MethodError(f'policy="{policy}" is not one of ["gradient", "update"]')
    link = MaskDirections(
        directions,
        policy="update" if policy == "update" else "gradient",
        resample_steps=resample_steps,
        mask_first_step=mask_first_step,
    )
    axes = find_axes(model, adapter_name)
    for axis in axes:
        bound = bindings_of(axis.layer).get(axis.adapter)
        if bound is not None and bound.method.hooks():
            raise AttachError(
                f"adapter {axis.adapter!r} trains by a method already ({axis.name}), which acts after these masks; "
                "chain MaskDirections to it instead"
            )
        if is_masked(axis):
            raise AttachError(f"adapter {axis.adapter!r} is masked already ({axis.name}); detach that handle first")
    binding = AxisBinding(link, axes, seed)
    if optimizer is not None:
        binding.bind(optimizer)
    return MaskedAxes(model, binding)
