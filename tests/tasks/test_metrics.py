import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from rmlora.errors import ConfigError
from rmlora.tasks.metrics import choose_metric, measure, metric_names


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_classification_agrees_with_scikit_learn(classes: int) -> None:
    rng = np.random.default_rng(classes)
    logits, truth = rng.normal(size=(60, classes)), rng.integers(0, classes, 60)
    logits[np.arange(60), truth] += 0.7
    found, guess = measure(logits, truth, "text-classification"), logits.argmax(-1)
    assert found["accuracy"] == accuracy_score(truth, guess)
    assert found["matthews"] == pytest.approx(matthews_corrcoef(truth, guess), abs=1e-12)
    assert ("f1" in found) == (classes == 2)
    if classes == 2:
        assert found["f1"] == pytest.approx(f1_score(truth, guess), abs=1e-12)


def test_regression_agrees_with_scipy() -> None:
    rng = np.random.default_rng(0)
    guess, truth = rng.normal(size=(50, 1)), rng.integers(0, 6, 50).astype(float)
    found = measure(guess, truth, "text-regression")
    assert found["pearson"] == pytest.approx(pearsonr(guess[:, 0], truth).statistic, abs=1e-12)
    assert found["spearman"] == pytest.approx(spearmanr(guess[:, 0], truth).statistic, abs=1e-12)


def test_constant_outputs_score_nothing() -> None:
    assert measure(np.ones((5, 1)), np.arange(5.0), "text-regression") == {"pearson": 0.0, "spearman": 0.0}
    found = measure(np.tile([1.0, 0.0], (4, 1)), np.array([0, 0, 1, 1]), "image-classification")
    assert found == {"accuracy": 0.5, "f1": 0.0, "matthews": 0.0}


def test_what_is_measured_is_what_is_named() -> None:
    for task, outputs in (("text-classification", 2), ("image-classification", 5), ("text-regression", 1)):
        found = measure(np.eye(6)[:, :outputs], np.zeros(6, dtype=int), task)
        assert tuple(found) == metric_names(task, outputs)


def test_a_metric_of_another_task_is_refused() -> None:
    with pytest.raises(ConfigError, match='has pearson, spearman, not "f1"'):
        choose_metric("f1", "text-regression", 1)
    with pytest.raises(ConfigError, match='with 3 outputs has accuracy, matthews, not "f1"'):
        choose_metric("f1", "text-classification", 3)
    assert choose_metric("f1", "text-classification", 2) == "f1"
