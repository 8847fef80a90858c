"""VeRA: two projections shared by all modules and frozen; each module learns two vectors."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

from rmlora.errors import MethodError
from rmlora.transform import Transform


@dataclass(frozen=True)
class ShareProjections(Transform):
    """Link: how a model with PEFT's VeRA is made; PEFT's own modules and the optimizer do all the rest.

    It has no hooks. `rmlora train` makes the model from it; attached to a model that exists, it only makes sure that
    the model is the one that was asked for.

    Attributes:
        r: rows of the shared A, >= 1. None: `lora.r` of the run, or whatever the model has.
        d_initial: first value of every d, > 0; None: PEFT's 0.1.
        projection_prng_key: seed of the shared projections, >= 0; None: PEFT's 0.
        save_projection: whether the projections are saved too; None: PEFT's True.

    Raises:
        MethodError: a value is out of range; when attached, the model has another.

    Example:
        >>> ShareProjections(r=256).hooks()
        frozenset()

    Source:
        VeRA, arXiv:2310.11454, as PEFT implements it.
    """

    adapts: ClassVar[str] = "VERA"

    r: int | None = None
    d_initial: float | None = None
    projection_prng_key: int | None = None
    save_projection: bool | None = None

    def __post_init__(self) -> None:
        if self.r is not None and self.r < 1:
            raise MethodError(f"r={self.r} of VeRA; it counts rows of the shared A, >= 1")
        if self.d_initial is not None and not 0.0 < self.d_initial < float("inf"):
            raise MethodError(
                f"d_initial={self.d_initial}; the first value of d must be finite and above 0 (PEFT's is 0.1)"
            )
        if self.projection_prng_key is not None and self.projection_prng_key < 0:
            raise MethodError(f"projection_prng_key={self.projection_prng_key}; it seeds the projections, >= 0")

    def suited_to(self, config: Any) -> ShareProjections:
        """Take what is open from the model's `VeraConfig`; refuse what differs from it."""
        found = {field.name: getattr(config, field.name) for field in fields(self)}
        for name, value in found.items():
            wanted = getattr(self, name)
            if wanted is not None and wanted != value:
                raise MethodError(
                    f"rmlora.vera({name}={wanted}), but the model was made with {name}={value}; leave it out, or give "
                    "it to peft.VeraConfig"
                )
        return ShareProjections(**found)
