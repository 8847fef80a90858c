"""Does what is saved give, in PEFT alone, what was trained?"""

from __future__ import annotations

from rmlora.doctor.finding import Finding
from rmlora.doctor.outputs import apart
from rmlora.doctor.subject import Saved, Subject

_EQUAL = 1e-4
_MERGED = 1e-3


def heads_saved(subject: Subject) -> Finding:
    """Tell whether all that is trained whole is in the file, as it is."""
    saved = _of(subject)
    if saved.failure:
        return Finding("heads saved", "skipped", "the adapter could not be saved and loaded")
    if saved.lacking:
        more = f" and {len(saved.lacking) - 1} more" if len(saved.lacking) > 1 else ""
        seen = f"trained but not in the file: {saved.lacking[0]}{more}"
        return Finding("heads saved", "problem", seen, "name the module in modules_to_save", {"lacking": saved.lacking})
    if not saved.num_whole:
        return Finding("heads saved", "skipped", "nothing is trained whole")
    return Finding("heads saved", "ok", f"{saved.num_whole} parameters trained whole are in the file as they are")


def reload_is_equal(subject: Subject) -> Finding:
    """Tell whether the saved adapter, loaded by PEFT alone, says what the model in training says."""
    saved = _of(subject)
    if saved.failure:
        return Finding(
            "reload", "problem", f"saving or loading stopped with {saved.failure}", "see lora.init_lora_weights"
        )
    if saved.silent:
        seen = f"the saved update is zero in {len(saved.silent)} modules, such as {saved.silent[0]}"
        return Finding(
            "reload", "problem", seen, "the parameters saved are not those trained: look at what shards the model"
        )
    loader = "transformers" if subject.plan.handle is None else "PEFT"
    seen = f"saved, loaded by {loader} alone: {apart(saved.gap)}"
    values = {"gap": saved.gap, "tolerance": _EQUAL}
    if not saved.gap <= _EQUAL:
        remedy = "something that acts in forward is not in the file: a new module, a changed base weight, a scale"
        return Finding("reload", "problem", seen, remedy, values)
    return Finding("reload", "ok", seen, values=values)


def merge_is_equal(subject: Subject) -> Finding:
    """Tell whether merging the loaded adapter into the base changes what it says."""
    saved = _of(subject)
    if saved.failure or saved.merge_gap is None:
        return Finding("merge", "skipped", "there is nothing to merge")
    seen = f"W + s B A in float32: {apart(saved.merge_gap)}"
    values = {"gap": saved.merge_gap, "tolerance": _MERGED}
    if not saved.merge_gap <= _MERGED:
        return Finding("merge", "warning", seen, "serve the adapter unmerged", values)
    return Finding("merge", "ok", seen, values=values)


def _of(subject: Subject) -> Saved:
    return subject.saved or Saved(failure="nothing was saved")
