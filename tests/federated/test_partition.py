from collections import Counter

import pytest

from rmlora.errors import ConfigError
from rmlora.federated.partition import deal_by_class

LABELS = [i % 5 for i in range(500)]


def evenness(alpha: float) -> float:
    """Mean over clients of the largest share of a class among a client's examples."""
    dealt = deal_by_class(LABELS, 5, alpha, seed=0)
    return sum(max(Counter(LABELS[i] for i in own).values()) / len(own) for own in dealt) / 5


@pytest.mark.parametrize(("clients", "alpha"), [(1, 0.5), (4, 0.5), (10, 100.0)])
def test_every_example_goes_to_one_client(clients: int, alpha: float) -> None:
    dealt = deal_by_class(LABELS, clients, alpha, seed=3)
    assert len(dealt) == clients
    assert sorted(i for own in dealt for i in own) == list(range(500))


def test_the_deal_is_a_function_of_its_seed() -> None:
    first, again, other = (deal_by_class(LABELS, 4, 1.0, seed) for seed in (0, 0, 1))
    assert first == again != other


def test_a_small_alpha_leaves_a_class_with_few_clients() -> None:
    assert evenness(1000.0) < 0.25 < 0.4 < evenness(0.3)


def test_a_client_without_examples_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"gives no example to client \d+ and \d+ more of 20 .*larger alpha"):
        deal_by_class([0, 1] * 10, 20, 0.1, seed=0)
