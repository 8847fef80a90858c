"""PEFT's linear layers in an ensemble's passes: what links would do to features is done to the small factors.

Only for methods whose forward hooks do nothing but multiply features (`multiplies_features`); training, and
everything else in evaluation, is what the gates compute.
"""

from __future__ import annotations

from typing import cast

import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor

from rmlora.fast_layers import why_not, why_not_numbers
from rmlora.gates import Gate, Owner
from rmlora.kernels.instances import add_instances
from rmlora.pairs import Pair


class SampledPath:
    """How one adapted linear layer is computed while its method draws in evaluation.

    Attributes:
        pair: the layer's pair.
        gates: the gates of A and B.
    """

    def __init__(self, pair: Pair, gates: tuple[Gate, Gate]) -> None:
        self.pair = pair
        self.gates = gates

    def __call__(self, layer: Linear, x: Tensor) -> Tensor | None:
        """Return the layer's output, or None where PEFT's own forward has to give it."""
        adapter = self.gates[0].adapter
        A, B = (cast(Tensor, module.weight) for module in self.pair.factor_modules)
        if layer.training or not adapter.sampling or torch.is_grad_enabled() or x.dim() < 2:
            return None
        if why_not(layer, self.pair, self.gates) or why_not_numbers(A, x, x.dtype) or A.dtype != x.dtype:
            return None
        if x.shape[0] % adapter.instances:
            return None
        output = layer.base_layer(x)
        if output.dtype != x.dtype:
            return None
        entering, leaving = feature_factors(adapter, self.pair, A, B)
        return add_instances(float(layer.scaling[self.pair.adapter]), output, x, A, B, entering, leaving)


def feature_factors(adapter: Owner, pair: Pair, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """What each instance's features are multiplied by: in front of A `(n, d_in)`, behind B `(n, d_out)`."""
    entering, leaving = A.new_ones(adapter.instances, A.shape[1]), B.new_ones(adapter.instances, B.shape[0])
    for_a, for_b = (adapter.forward_state(pair, module) for module in pair.factor_modules)
    entering = adapter.method.inputs(for_a[0], entering, for_a[1])
    leaving = adapter.method.outputs(for_b[0], leaving, for_b[1])
    return entering, leaving
