"""The layer behind the frozen model, fitted once to what the model gives it: a convex problem of its own."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from rmlora.errors import ConfigError

_ABSENT = -30.0  # logit of a class that no example has


def find_classifier(model: nn.Module, outputs: int) -> nn.Linear:
    """Return the layer that gives the task's outputs: the last linear one among what would be trained whole.

    Args:
        model: a PEFT model.
        outputs: classes, or 1.

    Raises:
        ConfigError: there is none.
    """
    found = [
        module
        for module in model.modules()
        if isinstance(module, nn.Linear) and module.out_features == outputs and module.weight.requires_grad
    ]
    if not found:
        raise ConfigError(f"{type(model).__name__} has no linear layer with {outputs} outputs at its end to be fitted")
    return found[-1]


@torch.no_grad()
def fit_classifier(layer: nn.Linear, features: Tensor, labels: Tensor, strength: float) -> None:
    """Fit the layer to features, in place: logistic regression, or ridge regression where labels are numbers.

    Args:
        layer: `(outputs, d)`.
        features: `(n, d)`, what it reads.
        labels: `(n,)` class ids or numbers.
        strength: inverse regularisation C of scikit-learn, > 0.

    Raises:
        ConfigError: all examples are of one class.
    """
    x = features.double().cpu().numpy()
    if labels.is_floating_point():
        weight, bias = _ridge(x, labels.double().cpu().numpy(), strength)
    else:
        weight, bias = _logistic(x, labels.cpu().numpy(), strength, layer.out_features)
    layer.weight.copy_(torch.from_numpy(weight))
    layer.bias.copy_(torch.from_numpy(bias))


def _ridge(x: np.ndarray, y: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.linear_model import Ridge

    found = Ridge(alpha=1 / strength).fit(x, y)
    return found.coef_[None], np.array([found.intercept_])


def _logistic(x: np.ndarray, y: np.ndarray, strength: float, outputs: int) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.linear_model import LogisticRegression

    if len(set(y.tolist())) < 2:
        raise ConfigError("all training examples are of one class, so there is no classifier to fit; give others too")
    found = LogisticRegression(C=strength, max_iter=1000).fit(x, y)
    weight, bias = np.zeros((outputs, x.shape[1])), np.full(outputs, _ABSENT)
    if len(found.classes_) == 2:  # one row for both classes: half of it each way
        rows, offsets = np.stack([-found.coef_[0], found.coef_[0]]) / 2, np.array([-1, 1]) * found.intercept_[0] / 2
    else:
        rows, offsets = found.coef_, found.intercept_
    weight[found.classes_], bias[found.classes_] = rows, offsets
    return weight, bias
