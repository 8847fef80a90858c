"""The small space of a block, and the fixed random maps from it into the block's A and B."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rmlora.draws import hash_word, words_of
from rmlora.errors import ConfigError

Shapes = Mapping[str, tuple[tuple[int, int], tuple[int, int]]]
"""By module: the shapes of A `(r, d_in)` and of B `(d_out, r)`."""

FactorPairs = dict[str, tuple[Tensor, Tensor]]
"""By module: A and B."""


@dataclass(frozen=True, eq=False)
class Projection:
    """A block's map from its numbers to its factors.

    Attributes:
        block: its name.
        maps: by module, the matrices `(entries of A, k)` and `(entries of B, k)`; k numbers are each factor's own.
        shapes: of the factors.
    """

    block: str
    maps: Mapping[str, tuple[Tensor, Tensor]]
    shapes: Shapes

    @property
    def dimension(self) -> int:
        """How many numbers the block has."""
        return sum(part.shape[1] for parts in self.maps.values() for part in parts)

    def factors(self, z: Tensor) -> FactorPairs:
        """Project numbers into factors.

        Args:
            z: float32 `(dimension,)`; all zero gives A = 0 and B = 0, which changes nothing.

        Returns:
            By module A `(r, d_in)` and B `(d_out, r)`.

        Raises:
            ConfigError: `z` has another length.
        """
        if z.shape != (self.dimension,):
            raise ConfigError(f"block {self.block} has {self.dimension} numbers, got {tuple(z.shape)}")
        found, used = {}, 0
        for name, parts in self.maps.items():
            pair = []
            for part, shape in zip(parts, self.shapes[name], strict=True):
                pair.append((part @ z[used : used + part.shape[1]]).reshape(shape))
                used += part.shape[1]
            found[name] = (pair[0], pair[1])
        return found


def project_blocks(shapes: Shapes, dimension: int, spread: float, seed: int) -> list[Projection]:
    """Draw the maps of all blocks.

    For numbers of mean square 1 the entries of A have deviation 1 / sqrt(d_in) and those of B `spread`, so that B A x
    is about sqrt(r) `spread` times as large as what a layer with entries of deviation 1 / sqrt(d_in) makes of x.

    Args:
        shapes: of the factors of all modules, by name.
        dimension: numbers per block, shared equally by its factors; what does not divide evenly is left out.
        spread: deviation of the entries of B, > 0.
        seed: of the maps; a function of it, the module's name and the side alone.

    Returns:
        A projection per block, in the order of `shapes`.

    Raises:
        ConfigError: a block has more factors than `dimension`.

    Example:
        >>> blocks = project_blocks({"h.0.q": ((2, 8), (8, 2)), "h.1.q": ((2, 8), (8, 2))}, 6, 0.1, seed=0)
        >>> [(block.block, block.dimension) for block in blocks]
        [('h.0', 6), ('h.1', 6)]

    Source:
        arXiv:2403.01754, section 3: per layer one vector, split equally over the factors, through fixed Gaussian
        matrices. Deviation: the variances above are ours.
    """
    blocks: dict[str, list[str]] = {}
    for name in shapes:
        blocks.setdefault(block_of(name), []).append(name)
    projections = []
    for block, names in blocks.items():
        own = dimension // (2 * len(names))
        if own < 1:
            raise ConfigError(
                f"derivative_free.dimension={dimension} is fewer than the {2 * len(names)} factors of block {block}; "
                "give more, or adapt fewer modules"
            )
        maps = {name: _maps(name, shapes[name], own, spread, seed) for name in names}
        projections.append(Projection(block, maps, {name: shapes[name] for name in names}))
    return projections


def block_of(name: str) -> str:
    """Return the block a module lies in: its name up to the first number.

    Example:
        >>> block_of("bert.encoder.layer.3.attention.self.query"), block_of("classifier")
        ('bert.encoder.layer.3', 'no block')
    """
    found = re.match(r"(?:.*?\.)?\d+(?=\.)", name)
    return found.group() if found else "no block"


def _maps(name: str, shapes: Sequence[tuple[int, int]], own: int, spread: float, seed: int) -> tuple[Tensor, Tensor]:
    drawn = []
    for side, (shape, deviation) in enumerate(zip(shapes, (shapes[0][1] ** -0.5, spread), strict=True)):
        generator = torch.Generator().manual_seed(hash_word(seed, *words_of(name), side))
        part = torch.randn((shape[0] * shape[1], own), generator=generator)
        drawn.append(part * (deviation * own**-0.5))
    return drawn[0], drawn[1]
