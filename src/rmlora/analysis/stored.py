"""The factor pairs of an adapter folder: which tensors belong together, and at what scale."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rmlora.analysis.folder import CONFIG_NAME, AdapterFolder
from rmlora.analysis.precision import at_least_float32
from rmlora.errors import AdapterError

_KEY = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_E|lora_diag|lora_embedding_A|lora_embedding_B)(\.weight)?"
)
# One name for what plays the same part: the factors, and the values AdaLoRA and KaSA keep between them.
_PART = {"lora_embedding_A": "lora_A", "lora_embedding_B": "lora_B", "lora_diag": "lora_E"}
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class StoredPair:
    """One adapted module of an adapter file.

    Attributes:
        name: the module's name in the base model.
        A: `(r, d_in)`, in the stored dtype; d_in counts a convolution's kernel, and an embedding's vocabulary.
        B: `(d_out, r)`, in the stored dtype.
        scale: s in dW = s B A.
    """

    name: str
    A: Tensor
    B: Tensor
    scale: float

    @property
    def r(self) -> int:
        """The number of directions."""
        return len(self.A)


def read_pairs(adapter: AdapterFolder) -> list[StoredPair]:
    """Pair the A and B of every adapted module, in the order of their names.

    Linear layers are taken as they are, convolutions flattened to `(r, in * kernel)` and `(out, r)` (grouped ones
    expanded to the block-diagonal matrix they stand for), embeddings as the transposed update of the same
    spectrum. AdaLoRA's lora_E and KaSA's lora_diag are folded into A. LoRA on stacked expert parameters gives a pair
    per expert.

    Args:
        adapter: an open folder.

    Raises:
        AdapterError: no LoRA tensors at all, one half of a pair missing, or shapes that disagree with one
            another or with the configuration.
    """
    _check_patterns(adapter)
    parts = _parts(adapter)
    shown = _unwrapped(parts)
    pairs: list[StoredPair] = []
    for stored_name in sorted(parts, key=_natural_order):
        name = shown[stored_name]
        A, B = _two_sides(name, parts[stored_name], adapter)
        pairs.extend(_scaled(name, A, B, adapter))
    return pairs


def unread_tensors(adapter: AdapterFolder) -> Counter[str]:
    """Count the tensors of the file that belong to no pair, by what they are.

    Args:
        adapter: an open folder.

    Returns:
        How many of each kind: the last `lora_...` component of the name, or "modules_to_save and other".
    """
    kinds: Counter[str] = Counter()
    for key in adapter.keys:
        if not _KEY.fullmatch(key):
            lora = re.findall(r"\.(lora_\w+(?:\.bias)?)", key)
            kinds[lora[-1] if lora else "modules_to_save and other"] += 1
    return kinds


def scale_of(name: str, config: dict[str, Any]) -> tuple[int, float]:
    """Return the rank and the scale PEFT would give the module `name` under this configuration.

    A pattern's key matches a whole module name or its tail after a dot, as a regular expression; the first that
    matches wins, and ranks and alphas are looked up apart. rsLoRA divides by sqrt(r). AdaLoRA divides by the
    initial rank, however far it was pruned since, plus 1e-5.

    Args:
        name: the module's name in the base model.
        config: adapter_config.json.

    Raises:
        AdapterError: r or lora_alpha is missing or not a number, or a pattern is not a regular expression.

    Example:
        >>> config = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "rank_pattern": {"value": 4}}
        >>> scale_of("layer.0.query", config), scale_of("layer.0.value", config)
        ((8, 2.0), (4, 4.0))
    """
    if str(config.get("peft_type")).upper() == "ADALORA":
        r, alpha = _number(config, "init_r"), _number(config, "lora_alpha")
        _check_rank(r, name)
        return int(r), (alpha if alpha > 0 else r) / (r + 1e-5)
    r = _number(config, "r", _matched(name, config, "rank_pattern"))
    alpha = _number(config, "lora_alpha", _matched(name, config, "alpha_pattern"))
    _check_rank(r, name)
    return int(r), alpha / (math.sqrt(r) if config.get("use_rslora") else r)


def _check_rank(r: float, name: str) -> None:
    if r < 1 or r != int(r):
        raise AdapterError(f"{CONFIG_NAME}: r is {r:g} for {name}; it must be a whole number of at least 1.")


def _matched(name: str, config: dict[str, Any], field: str) -> Any:
    """The value of the first pattern of `field` that matches `name`, or None."""
    pattern = config.get(field) or {}
    if not isinstance(pattern, dict):
        raise AdapterError(f"{CONFIG_NAME}: {field} is {pattern!r}; it must map module names to numbers.")
    for key, value in pattern.items():
        try:
            if re.match(rf"(.*\.)?({key})$", name):
                return value
        except re.error as error:
            raise AdapterError(f"{CONFIG_NAME}: {field} has {key!r}, no regular expression ({error}).") from error
    return pattern.get(name)


def _number(config: dict[str, Any], field: str, matched: Any = None) -> float:
    value = config.get(field) if matched is None else matched
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise AdapterError(f"{CONFIG_NAME}: {field} is {value!r}, not a number; without it dW has no scale.")
    return float(value)


def _natural_order(name: str) -> list[tuple[int, int | str]]:
    """Sort key in which layer 2 comes before layer 10."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in name.split(".")]


def _unwrapped(names: Iterable[str]) -> dict[str, str]:
    """Drop the `base_layer` that PEFT's wrapping puts into names, where two modules do not become one by it."""
    plain = {name: name.replace(".base_layer", "") for name in names}
    shared = Counter(plain.values())
    return {name: short if shared[short] == 1 else name for name, short in plain.items()}


def _check_patterns(adapter: AdapterFolder) -> None:
    """Refuse patterns over `target_parameters`: PEFT matches them with parameter names that no file records."""
    config = adapter.config
    if config.get("target_parameters") and (config.get("rank_pattern") or config.get("alpha_pattern")):
        raise AdapterError(
            f"{adapter.path / CONFIG_NAME} combines target_parameters with rank_pattern or alpha_pattern; which rank "
            "and scale a tensor has cannot be read from the files, so load this adapter with PEFT instead."
        )


def _parts(adapter: AdapterFolder) -> dict[str, dict[str, Tensor]]:
    """Module name -> the tensors of its pair, keyed lora_A, lora_B, lora_E."""
    matches = {key: match for key in adapter.keys if (match := _KEY.fullmatch(key))}
    if not matches:
        shown = ", ".join(adapter.keys[:3]) or "no tensors at all"
        more = f" and {len(adapter.keys) - 3} more" if len(adapter.keys) > 3 else ""
        raise AdapterError(f"{adapter.path} has no lora_A/lora_B tensors; found {shown}{more}.")
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in adapter.tensors(matches).items():
        name = matches[key]["module"].removeprefix(_PREFIX)
        part = matches[key]["part"]
        parts.setdefault(name, {})[_PART.get(part, part)] = tensor
    return parts


def _two_sides(name: str, parts: dict[str, Tensor], adapter: AdapterFolder) -> tuple[Tensor, Tensor]:
    """A `(r, d_in)` and B `(d_out, r)` of one module, whatever layer they come from."""
    for side, other in (("lora_A", "lora_B"), ("lora_B", "lora_A")):
        if side not in parts:
            raise AdapterError(
                f"{adapter.path}: {name} has {other} but no {side}; the adapter was not saved whole, save it again."
            )
    A, B = parts["lora_A"], parts["lora_B"]
    if A.ndim < 2 or B.ndim < 2:
        raise AdapterError(
            f"{adapter.path}: {name} has lora_A {tuple(A.shape)} and lora_B {tuple(B.shape)}, where matrices are "
            "needed; were sharded parameters saved without gathering them?"
        )
    if A.ndim > 2:
        A, B = A.flatten(1), _ungrouped(B.flatten(1), len(A))
    if B.shape[1] != len(A):
        raise AdapterError(
            f"{adapter.path}: {name} has lora_A {tuple(A.shape)} and lora_B {tuple(B.shape)}; the rows of A must be "
            "as many as the columns of B."
        )
    return _times_values(name, A, parts["lora_E"], adapter) if "lora_E" in parts else A, B


def _times_values(name: str, A: Tensor, E: Tensor, adapter: AdapterFolder) -> Tensor:
    """Fold the r values kept between the factors into the rows of A, in a precision that does not round them."""
    if E.numel() != len(A):
        raise AdapterError(
            f"{adapter.path}: {name} has lora_A {tuple(A.shape)} and values {tuple(E.shape)}; there must be one value "
            "per row of A."
        )
    return at_least_float32(A) * at_least_float32(E).reshape(-1, 1)


def _ungrouped(B: Tensor, r: int) -> Tensor:
    """Write the B of a grouped convolution, `(d_out, r / groups)`, as the `(d_out, r)` matrix it acts as."""
    if B.shape[1] == 0 or r % B.shape[1] or len(B) % (r // B.shape[1]):
        return B
    whole: Tensor = torch.block_diag(*B.chunk(r // B.shape[1]))  # type: ignore[no-untyped-call]
    return whole


def _scaled(name: str, A: Tensor, B: Tensor, adapter: AdapterFolder) -> list[StoredPair]:
    r, scale = scale_of(name, adapter.config)
    if adapter.peft_type == "ADALORA" or len(A) == r:  # AdaLoRA's rank is what its allocation left
        return [StoredPair(name, A, B, scale)]
    if adapter.config.get("target_parameters") and len(A) % r == 0:
        A_ERI = A.reshape(-1, r, A.shape[1])
        B_EOR = B.reshape(len(B), r, -1).permute(2, 0, 1)
        return [StoredPair(f"{name}[{expert}]", A_ERI[expert], B_EOR[expert], scale) for expert in range(len(A_ERI))]
    raise AdapterError(
        f"{adapter.path}: {name} has {len(A)} directions, but {CONFIG_NAME} says r = {r}; the two files do not "
        "belong together."
    )
