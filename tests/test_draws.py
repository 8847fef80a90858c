"""Draws are functions of what they are for, and look random."""

import torch

from rmlora.draws import draw_directions, hash_scores


def keys(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2**32, (n, 2), generator=generator)


def test_scores_are_the_published_mixer_word_by_word():
    word = 0xFFFFFFFF

    def mix(x):
        x ^= x >> 16
        x = (x * 0x7FEB352D) & word
        x ^= x >> 15
        x = (x * 0x846CA68B) & word
        return x ^ (x >> 16)

    def score(seed, step, low, high, direction):
        h = 0x9E3779B9
        for counter in (seed, step):
            h = mix(mix(h ^ (counter & word)) ^ ((counter >> 32) & word))
        return mix(mix(mix(h ^ low) ^ high) ^ direction)

    for rows in (hash_scores(keys(4), 6, 3, 2**40 + 5).tolist(),):
        for pair, scores in zip(keys(4).tolist(), rows, strict=True):
            assert scores == [score(3, 2**40 + 5, *pair, i) for i in range(6)]


def test_scores_do_not_tie_within_a_pair():
    for row in hash_scores(keys(50), 256, 0, 1):
        assert row.unique().numel() == 256


def test_exactly_the_count_is_drawn():
    for count in (0, 1, 5, 16):
        assert (draw_directions(keys(20), 16, count, 0, 0).sum(1) == count).all()


def test_every_direction_is_drawn_equally_often_and_steps_are_independent():
    steps, r, count = 4000, 8, 3
    drawn = torch.stack([draw_directions(keys(4), r, count, 0, step) for step in range(steps)]).double()
    expected = count / r
    spread = (expected * (1 - expected) / steps) ** 0.5
    assert ((drawn.mean(0) - expected).abs() < 5 * spread).all()
    together = (drawn[:-1] * drawn[1:]).mean(0)
    assert ((together - expected**2).abs() < 5 * (expected**2 / steps) ** 0.5).all()


def test_seed_step_pair_and_stream_each_change_the_draw():
    base = draw_directions(keys(8), 32, 16, 0, 0, 0)
    for counters in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (-1, 0, 0), (2**33, 0, 0)):
        assert not torch.equal(base, draw_directions(keys(8), 32, 16, *counters))
    assert not torch.equal(base, draw_directions(keys(8, seed=1), 32, 16, 0, 0, 0))
    assert torch.equal(base, draw_directions(keys(8), 32, 16, 0, 0, 0))
