import pytest

from rmlora.config import TrainingConfig
from rmlora.federated.turns import client_seed, clients_of_round, parts_before, parts_of_round, rate_of_round
from rmlora.sections import FederatedSettings


@pytest.mark.parametrize(
    ("told", "rounds"),
    [
        ({"factors": "alternate"}, ["B head", "A head", "B head", "A head"]),
        ({"factors": "alternate", "head": "b"}, ["B head", "A", "B head", "A"]),
        ({"factors": "both"}, ["A B head"] * 4),
        ({"factors": "b"}, ["B head"] * 4),
    ],
)
def test_what_a_round_trains(told: dict, rounds: list[str]) -> None:
    settings = FederatedSettings(**told)
    assert [" ".join(sorted(parts_of_round(settings, n))) for n in (1, 2, 3, 4)] == rounds
    for n in (1, 2, 3, 4):
        assert parts_before(settings, n) == frozenset().union(*(parts_of_round(settings, k) for k in range(1, n)))


def test_a_share_of_the_clients_is_drawn_anew_for_every_round() -> None:
    settings = FederatedSettings(clients=10, fraction=0.3)
    drawn = [clients_of_round(settings, 0, number) for number in range(1, 60)]
    assert all(len(set(own)) == 3 and own == sorted(own) for own in drawn)
    assert len({tuple(own) for own in drawn}) > 30
    assert {client for own in drawn for client in own} == set(range(10))
    assert drawn[0] == clients_of_round(settings, 0, 1)
    assert len(clients_of_round(FederatedSettings(clients=10, fraction=0.01), 0, 1)) == 1


def test_every_client_has_a_seed_of_its_own_in_every_round() -> None:
    seeds = {client_seed(s, n, c) for s in range(5) for n in range(1, 11) for c in range(10)}
    assert len(seeds) == 500


def test_the_rate_falls_from_round_to_round_after_its_warm_up() -> None:
    training = TrainingConfig(lr=0.4, lr_scheduler="linear", warmup_steps=2)
    rates = [rate_of_round(training, number, 6) for number in range(1, 7)]
    assert rates == pytest.approx([0.0, 0.2, 0.4, 0.3, 0.2, 0.1])
    constant = TrainingConfig(lr=0.4, lr_scheduler="constant")
    assert {rate_of_round(constant, number, 6) for number in range(1, 7)} == {0.4}
