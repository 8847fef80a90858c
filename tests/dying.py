"""The command line, whose second process is killed once, in the middle of its eighth step."""

import os
import signal

from transformers import Trainer

from rmlora.cli import main

LAST_STEP = 7
_training_step = Trainer.training_step


def die(self, *args, **kwargs):
    if self.state.global_step == LAST_STEP:
        os.kill(os.getpid(), signal.SIGKILL)
    return _training_step(self, *args, **kwargs)


if __name__ == "__main__":
    if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        Trainer.training_step = die
    main()
