"""SoRA: a learnt gate on every direction, and a proximal step that shuts those the task does not need."""

from __future__ import annotations

from rmlora.combine import Chain, chain
from rmlora.schedules import Scalar
from rmlora.transforms import GateDirections
from rmlora.transforms.gate_directions import Prox, Start


def sora(threshold: Scalar = 3e-4, *, weight: Scalar = 0.0, prox: Prox = "soft", start: Start = "normal") -> Chain:
    """Return SoRA: LoRA whose directions carry learnt gates, shrunk to exactly zero where the task does not need them.

    Train at a rank above the one you want to keep, and drop shut directions with `rmlora.export_pruned`.

    Args:
        threshold: what each optimizer step takes off every gate, >= 0, or a schedule; not multiplied by the learning
            rate. 0 leaves gates that only learn, and prunes nothing. The paper tunes it per task; 3e-4 is the
            released script's for STS-B.
        weight: strength of an additional L1 penalty on the gates, >= 0, or a schedule; 0 adds none.
        prox: "soft", or "released" to reproduce the authors' operator, under which a shut gate hardly ever opens again.
        start: "normal" (N(0, 1), as the authors) or "ones".

    Returns:
        A method for `rmlora.attach`.

    Raises:
        MethodError: a value is out of range or a name unknown.

    Example:
        >>> sora(1e-3).links[0].threshold
        0.001

    Source:
        SoRA, arXiv:2311.11696, Sec. 3. Deviations: see `GateDirections`.
    """
    return chain(GateDirections(threshold=threshold, weight=weight, prox=prox, start=start))
