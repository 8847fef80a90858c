"""A worker process of a study: `python -m rmlora.compare.worker FOLDER THREADS PARENT`."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from rmlora.errors import RmloraError

DISK_FULL = 3


def main(words: list[str]) -> int:
    """Work on the study of a folder until nothing is left; return the exit code.

    Args:
        words: folder, number of threads, and number of the process whose end is this one's.
    """
    folder, threads, parent = Path(words[0]), int(words[1]), int(words[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    import torch

    from rmlora.compare.reading import read_study
    from rmlora.compare.store import Store
    from rmlora.compare.work import end_with, work
    from rmlora.run.faults import DiskFullError

    if os.getppid() != parent:
        return 1
    end_with(parent)
    torch.set_num_threads(threads)
    store = Store(folder)
    try:
        work(read_study(store.study), store)
    except DiskFullError as error:
        sys.stderr.write(f"{error}\n")
        return DISK_FULL
    except RmloraError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
