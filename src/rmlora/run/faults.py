"""What a machine does to a run, in one line: no memory, no space, no right to write."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from rmlora.config import TrainingConfig
from rmlora.errors import RmloraError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_BYTES = 2**16
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
_NO_SPACE = ("no space left on device", "disk quota exceeded")
_REFUSED = ("read-only file system", "permission denied", "operation not permitted")
_EVALUATES = ("evaluate", "evaluation_loop", "predict")


class DiskFullError(RmloraError):
    """Nothing more can be written."""


class MemoryFullError(RmloraError):
    """What was to be computed at once does not fit the memory."""


@contextmanager
def explained(folder: Path, training: TrainingConfig) -> Iterator[None]:
    """Turn what the machine did to a run into an error of one line that says what helps.

    Args:
        folder: where the run is written.
        training: of the run, for smaller batches.

    Raises:
        DiskFullError: there is no space left.
        MemoryFullError: a batch does not fit.
        RmloraError: the folder may not be written.
    """
    try:
        yield
    except Exception as error:
        told = disk_full(error, folder) if isinstance(error, RmloraError) else _explain(error, folder, training)
        if told is None:
            raise
        raise told from error


def disk_full(error: BaseException, folder: Path, after: str = "") -> DiskFullError | None:
    """Recognise an error that comes from a full disk, whatever library turned it into what.

    Args:
        error: with the errors it came from.
        folder: on the disk in question.
        after: what to say of what is written; the text for one run if empty.

    Returns:
        What to raise instead; None if it is another error.
    """
    links = _chain(error)
    known = any(isinstance(link, DiskFullError) for link in links)
    said = any(isinstance(e, OSError) and e.errno in _FULL for e in links) or _says(links, _NO_SPACE)
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    free = shutil.disk_usage(place).free
    if not (known or said or (free < _FULL_BYTES and not isinstance(error, RmloraError))):
        return None
    after = after or "the last checkpoint is whole; make room and go on with --resume"
    return DiskFullError(f'no space left in "{folder}" ({free:,} bytes free): {after}')


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an allocation failed, on a GPU or in main memory.

    Example:
        >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("shape mismatch"))
        (True, False)
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _NO_MEMORY)


def smaller_batch(training: TrainingConfig) -> tuple[int, int] | None:
    """Return batch_size and gradient_accumulation_steps with the same product and at most half the batch.

    Example:
        >>> smaller_batch(TrainingConfig(batch_size=32)), smaller_batch(TrainingConfig(batch_size=9))
        ((16, 2), (3, 3))
    """
    size = training.batch_size
    smaller = next((part for part in range(size // 2, 0, -1) if size % part == 0), None)
    return None if smaller is None else (smaller, training.gradient_accumulation_steps * size // smaller)


def _explain(error: Exception, folder: Path, training: TrainingConfig) -> RmloraError | None:
    full = disk_full(error, folder)
    if full is not None:
        return full
    links = _chain(error)
    if any(is_out_of_memory(link) for link in links):
        return MemoryFullError(_about_memory(error, training))
    refused = next((e for e in links if isinstance(e, OSError) and e.errno in (errno.EROFS, errno.EACCES)), None)
    if refused is not None or _says(links, _REFUSED):
        where = (refused.filename if refused is not None else None) or folder
        reason = (refused.strerror if refused is not None else None) or str(error).splitlines()[0]
        return RmloraError(
            f'cannot write "{where}": {reason}; make "{folder}" writable and go on with --resume, or choose another '
            "output"
        )
    return None


def _about_memory(error: Exception, training: TrainingConfig) -> str:
    if _happened_in(error, _EVALUATES):
        size = training.eval_batch_size
        less = f"eval_batch_size={size // 2}" if size > 1 else "a smaller data.max_length"
        return (
            f"out of memory while evaluating {size} examples at once: go on with --resume, from the start with {less}"
        )
    smaller = smaller_batch(training)
    if smaller is None:
        more = "" if training.gradient_checkpointing else "gradient_checkpointing=true or "
        return f"out of memory with one example per forward pass: use {more}a smaller data.max_length or model"
    return (
        f"out of memory with batch_size={training.batch_size}: start again with batch_size={smaller[0]} "
        f"gradient_accumulation_steps={smaller[1]}, the same number of examples per step (and --overwrite)"
    )


def _happened_in(error: BaseException, functions: tuple[str, ...]) -> bool:
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_name in functions:
            return True
        trace = trace.tb_next
    return False


def _says(links: list[BaseException], words: tuple[str, ...]) -> bool:
    """Whether a library written in another language says in words what Python says by a number."""
    return any(word in str(link).lower() for link in links if not isinstance(link, RmloraError) for word in words)


def _chain(error: BaseException) -> list[BaseException]:
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    return chain
