"""The classifier that is fitted once is scikit-learn's, as a linear layer."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from torch import nn

from rmlora.derivative_free.classifier import find_classifier, fit_classifier
from rmlora.errors import ConfigError

X = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("classes", [2, 3])
def test_probabilities_are_those_of_the_logistic_regression(classes: int) -> None:
    labels = torch.arange(30) % classes
    layer = nn.Linear(5, classes)
    fit_classifier(layer, X, labels, strength=0.5)
    wanted = LogisticRegression(C=0.5, max_iter=1000).fit(X.double().numpy(), labels.numpy()).predict_proba(X.numpy())
    np.testing.assert_allclose(layer(X).softmax(-1).detach().numpy(), wanted, atol=1e-5)


def test_a_class_without_examples_is_not_predicted() -> None:
    layer = nn.Linear(5, 4)
    fit_classifier(layer, X, torch.arange(30) % 2 * 3, strength=0.5)
    assert set(layer(X).argmax(1).tolist()) == {0, 3}


def test_numbers_are_fitted_by_ridge_regression() -> None:
    y = X @ torch.arange(5.0)
    layer = nn.Linear(5, 1)
    fit_classifier(layer, X, y, strength=0.5)
    wanted = Ridge(alpha=2.0).fit(X.numpy(), y.numpy()).predict(X.numpy())
    np.testing.assert_allclose(layer(X).squeeze(-1).detach().numpy(), wanted, atol=1e-4)


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(ConfigError, match="all training examples are of one class"):
        fit_classifier(nn.Linear(5, 2), X, torch.zeros(30, dtype=torch.long), 1.0)
    with pytest.raises(ConfigError, match="no linear layer with 7 outputs"):
        find_classifier(nn.Linear(5, 2), 7)
