"""Random draws without a generator: every number is a hash of what it is for.

A draw depends on (seed, step, pair, direction) alone, so it is the same on every process and device, exact on
resume, and independent of data order and dropout. Arithmetic is 32-bit inside int64 tensors, with no overflow.
"""

import hashlib
import math

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF


def hash_scores(keys: Tensor, num: int, *counters: int) -> Tensor:
    """Hash every (pair, position) under the given counters to an integer in [0, 2^32).

    The mixer is the published 32-bit finaliser "lowbias32" (Chris Wellons, hash-prospector). It is a bijection, so the
    scores of one pair never tie.

    Args:
        keys: int64 `(n, 2)`, two 32-bit words for each pair.
        num: how many positions (directions, features ...) to score for each pair.
        counters: seed, step, stream ...: integers in [-2^63, 2^63); each changes every score.

    Returns:
        int64 `(n, num)` on the device of `keys`; roughly uniform.

    Example:
        >>> keys = torch.tensor([[1, 2], [3, 4]])
        >>> hash_scores(keys, 3, 0, 7).shape
        torch.Size([2, 3])
    """
    prefix = hash_word(*counters)
    mixed = _mix(_mix(keys[:, :1] ^ prefix) ^ keys[:, 1:])
    return _mix(mixed ^ torch.arange(num, device=keys.device))


def hash_word(*counters: int) -> int:
    """Hash counters to an integer in [0, 2^32): a draw that all pairs share.

    Args:
        counters: as for `hash_scores`.

    Example:
        >>> 0 <= hash_word(0, 7) < 2**32, hash_word(0, 7) == hash_word(0, 8)
        (True, False)
    """
    word = 0x9E3779B9
    for counter in counters:
        word = _mix_int(_mix_int(word ^ (counter & _WORD)) ^ ((counter >> 32) & _WORD))
    return word


def draw_normals(keys: Tensor, num: int, *counters: int) -> Tensor:
    """Draw standard normal numbers for each pair, by Box and Muller's transform of two hashes.

    Args:
        keys: int64 `(n, 2)`, two 32-bit words for each pair.
        num: how many for each pair.
        counters: as for `hash_scores`.

    Returns:
        float64 `(n, num)` on the device of `keys`; computed on the CPU, so the same on every device.

    Example:
        >>> draw_normals(torch.tensor([[1, 2]]), 1000, 0, 7).std().round(decimals=1)
        tensor(1., dtype=torch.float64)
    """
    first, second = ((hash_scores(keys.cpu(), num, *counters, i).double() + 0.5) / 2.0**32 for i in range(2))
    normals = (-2.0 * first.log()).sqrt() * (2.0 * math.pi * second).cos()
    return normals.to(keys.device)


def words_of(name: str) -> tuple[int, int]:
    """Two 32-bit words that stand for a name in every draw: blake2b of it.

    Example:
        >>> words_of("encoder.layer.0.query") == words_of("encoder.layer.0.key")
        False
    """
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def draw_directions(keys: Tensor, r: int, count: int, *counters: int) -> Tensor:
    """Choose `count` of `r` directions for each pair: those with the smallest scores.

    Args:
        keys: int64 `(n, 2)`, two 32-bit words for each pair.
        r: number of directions.
        count: how many to choose, 0 to r.
        counters: as for `hash_scores`.

    Returns:
        boolean `(n, r)` with exactly `count` True in each row.

    Example:
        >>> draw_directions(torch.tensor([[1, 2]]), 8, 3, 0, 7).sum().item()
        3
    """
    scores = hash_scores(keys, r, *counters)
    order = scores.argsort(dim=1, stable=True)[:, :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order, True)


def fork_keys(keys: Tensor, num: int, first: int = 0) -> Tensor:
    """Give each pair a key of its own for every instance: number `first` and the `num - 1` that follow.

    Args:
        keys: int64 `(n, 2)`, two 32-bit words for each pair.
        num: how many instances.
        first: number of the first one, >= 0; instance 0 has the pair's own key.

    Returns:
        int64 `(n, num, 2)` on the device of `keys`.

    Example:
        >>> keys = torch.tensor([[1, 2]])
        >>> forked = fork_keys(keys, 3)
        >>> torch.equal(forked[:, 0], keys), torch.equal(forked[:, 1:], fork_keys(keys, 2, first=1))
        (True, True)
    """
    if num == 1 and first == 0:
        return keys.unsqueeze(1)
    words = torch.tensor([_mix_int(i) for i in range(first, first + num)], device=keys.device)
    return torch.stack([keys[:, :1].expand(-1, num), keys[:, 1:] ^ words], dim=2)


def _multiply(x: Tensor, factor: int) -> Tensor:
    # Two partial products, of which neither exceeds 2^48, so int64 never overflows; what the word drops is left out.
    return torch.add(x * (factor & 0xFFFF), x & 0xFFFF, alpha=factor & 0xFFFF0000) & _WORD


def _mix(x: Tensor) -> Tensor:
    x = _multiply(x ^ (x >> 16), 0x7FEB352D)
    x = _multiply(x ^ (x >> 15), 0x846CA68B)
    return x ^ (x >> 16)


def _mix_int(x: int) -> int:
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _WORD
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _WORD
    return x ^ (x >> 16)
