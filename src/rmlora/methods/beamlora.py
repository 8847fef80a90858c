"""BeamLoRA: the directions of a module compete, and the best take over the places of the worst."""

from __future__ import annotations

from dataclasses import replace

from rmlora.combine import Chain, chain
from rmlora.schedules import Scalar, cosine
from rmlora.transforms import ReplaceDirections


def beamlora(
    total_steps: int | None = None, *, interval: int = 3000, mass: Scalar = 0.95, temperature: float = 0.05
) -> Chain:
    """Return BeamLoRA: LoRA whose weak directions are replaced, again and again, by copies of strong ones.

    Args:
        total_steps: optimizer steps of the whole training, >= 1. Given, `mass` rises to 1 by half a cosine, and nothing
            is replaced in the last interval; None keeps `mass` and replaces to the end.
        interval: optimizer steps between replacements, >= 2.
        mass: cumulative share of the gates, over all modules, beyond which a direction is weak, in (0, 1], or a
            schedule, which is taken as it is.
        temperature: of the softmax that makes gates of scores, > 0. The authors take 0.05, and 0.03 at learning rates
            below 1e-4.

    Returns:
        A method for `rmlora.attach`.

    Raises:
        MethodError: a value is out of range.

    Example:
        >>> link = beamlora(total_steps=10_000, interval=1000).links[0]
        >>> round(link.mass(0), 3), round(link.mass(5000), 3), round(link.mass(10_000), 3)
        (0.95, 0.975, 1.0)

    Source:
        BeamLoRA, arXiv:2502.13604. Deviations: see `ReplaceDirections`.
    """
    link = ReplaceDirections(interval, total_steps, mass, temperature)
    if total_steps is not None and not callable(mass):
        link = replace(link, mass=cosine(mass, 1.0, total_steps))
    return chain(link)
