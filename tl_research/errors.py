"""Define the exceptions for input that cannot be used."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input. The message is one line that names the file or key, what is wrong, and what to do.

    The command line (`train.py`, `python -m tl_research`) prints it and exits with status 2. Any other exception is a
    defect of ours and keeps its traceback.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


class MissingResourceError(InputError):
    """A run's images or weights are missing. A sweep skips such a job and runs the others."""

    def __init__(self, what: str, message: str):
        super().__init__(message)
        self.what = what
        """`data`, `weights` or `data and weights`."""

    def __reduce__(self) -> tuple[type[MissingResourceError], tuple[str, str]]:
        return type(self), (self.what, str(self))


class CombinationError(InputError):
    """Each value is valid, but they do not go together. A sweep leaves such a combination out and runs the others."""


class DivergedError(InputError):
    """The loss is NaN or infinite."""

    def __init__(self, stage: str, epoch: int, update: int, rate: float):
        self.stage, self.epoch, self.update, self.rate = stage, epoch, update, rate
        super().__init__(
            f"stage {stage} diverged: the loss is no number at update {update} of epoch {epoch}, at a learning rate of "
            f"{rate:.3g}; give a smaller transfer.{stage}.learning_rate, or add trainer.clip_norm=1"
        )

    def __reduce__(self) -> tuple[type[DivergedError], tuple[str, int, int, float]]:
        return type(self), (self.stage, self.epoch, self.update, self.rate)
