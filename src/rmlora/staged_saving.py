"""Saving adapters that PEFT would not write as they have to be: in a folder of its own first, rewritten, then moved.

An adapter with blocks is written with all its directions, which are more than its live factors have.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from peft import set_peft_model_state_dict
from safetensors.torch import load_file

from rmlora.analysis.folder import CONFIG_NAME
from rmlora.analysis.stored import scale_of
from rmlora.errors import StateError
from rmlora.prune_export import alpha_of, with_ranks
from rmlora.saving import ADAPTER_FILE, STATE_FILE, LoadAdapter, SavePretrained, read_lost_state


class SaveStaged(SavePretrained):
    """`model.save_pretrained` whose files are rewritten before they appear."""

    def __call__(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """Let PEFT write elsewhere, rewrite the adapter, and move everything here."""
        if not self.is_active or not kwargs.get("is_main_process", True):
            return super().__call__(save_directory, *args, **kwargs)
        target = Path(save_directory)
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=target) as temporary:
            result = super().__call__(temporary, *args, **kwargs)
            if (self.folder_of(temporary) / CONFIG_NAME).is_file():  # not selected otherwise
                self.rewrite(self.folder_of(temporary))
            for path in sorted(p for p in Path(temporary).rglob("*") if p.is_file()):
                place = target / path.relative_to(temporary)
                place.parent.mkdir(exist_ok=True)
                os.replace(path, place)
        return result

    def rewrite(self, folder: Path) -> None:
        """Change what PEFT wrote into `folder`, which is not yet the one the caller named."""
        raise NotImplementedError


class SaveWider(SaveStaged):
    """`model.save_pretrained` for methods with blocks: ranks and alphas of the configuration count their directions."""

    def rewrite(self, folder: Path) -> None:
        """Write the ranks that the folded factors have; every module keeps its scale."""
        config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
        wanted = {
            pair.name: (factors.A.shape[1], pair.scale)
            for stack, factors in zip(self.binding.stacks, self.binding.fold(), strict=True)
            for pair in stack.pairs
        }
        write_config(folder, ranked(config, wanted))


class LoadBeside(LoadAdapter):
    """`model.load_adapter` that takes live factors from the state beside an adapter, and from it what is not LoRA."""

    def __call__(self, model_id: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """Restore factors and state; PEFT alone could not read the file into the live factors."""
        name = kwargs.get("adapter_name") or (args[0] if args and isinstance(args[0], str) else "default")
        folder = Path(model_id)
        if not self.is_active or name != self.binding.adapter:
            return self.__wrapped__(model_id, *args, **kwargs)
        if not (folder / STATE_FILE).is_file():
            return self.load_bare(folder, *args, **kwargs)
        others = {key: value for key, value in load_file(folder / ADAPTER_FILE).items() if ".lora_" not in key}
        read_lost_state(self.binding, folder)
        return set_peft_model_state_dict(self.model, others, adapter_name=name)

    def load_bare(self, folder: Path, *args: Any, **kwargs: Any) -> Any:
        """Load an adapter without state beside it as PEFT does, which asks for the rank of the live factors."""
        try:
            return self.__wrapped__(str(folder), *args, **kwargs)
        except RuntimeError as error:
            if "size mismatch" not in str(error):
                raise
            raise StateError(
                f"{folder} holds other ranks than the adapter in training and no {STATE_FILE} beside them; load it "
                "into a model of its own with PeftModel.from_pretrained"
            ) from None


def ranked(config: dict[str, Any], wanted: dict[str, tuple[int, float]]) -> dict[str, Any]:
    """Return a LoRA configuration with the wanted ranks and scales: by r and lora_alpha where one pair of them will do.

    Args:
        config: adapter_config.json of plain LoRA.
        wanted: (rank, scale) by the module's full name.

    Example:
        >>> config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}
        >>> ranked(config, {"q": (8, 2.0), "v": (8, 2.0)})["lora_alpha"]
        16
    """
    rank, scale = max(wanted.values())
    alpha = alpha_of(rank, scale, bool(config.get("use_rslora")))
    plain = config | {"r": rank, "lora_alpha": alpha, "rank_pattern": {}, "alpha_pattern": {}}
    if all(scale_of(name, plain) == aim for name, aim in wanted.items()):
        return plain
    return with_ranks(config, wanted)


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """Write an adapter's configuration as PEFT does."""
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
