"""A trainer that goes on from a checkpoint: what transformers and TRL leave open there, and errors in plain words.

`labkit.training.resume` says which checkpoint is good; here it is read.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.errors import LabError
from labkit.files import writing
from labkit.training.saves import step_of

if TYPE_CHECKING:
    from trl import SFTTrainer

_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO)
_REFUSALS += (errno.ENOTCONN, errno.ESTALE)  # a network disk that went away, such as Drive


def train_from(trainer: SFTTrainer, checkpoint: Path | None) -> None:
    """``trainer.train()``, from a checkpoint if there is one.

    Raises:
        LabError: the disk is full or refuses a checkpoint, and those already saved stay good; or the checkpoint that is
            read holds more than data.
    """
    if checkpoint is not None:
        _restore_token_count(trainer, checkpoint)
        if step_of(checkpoint) >= trainer.args.max_steps:
            return _take_over(trainer, checkpoint)
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except pickle.UnpicklingError:  # optimizer and random numbers, read with torch's weights_only
        rule = "a file in it holds more than tensors and numbers, so it could run code and is not read"
        raise LabError(str(checkpoint), rule, "delete this folder if you do not know who made it") from None
    except Exception as error:
        if refused := _disk_error(error):
            with writing(trainer.args.output_dir):
                raise refused from error
        raise


def _disk_error(error: Exception) -> OSError | None:
    """``error`` as an OSError if it means that the disk refused; torch and safetensors hide it in their own errors."""
    if isinstance(error, OSError):
        return error if error.errno in _REFUSALS else None
    said = str(error)
    for number in _REFUSALS:
        if os.strerror(number) in said or f"os error {number}" in said:
            return OSError(number, os.strerror(number))
    torch_says = any(words in said for words in ("PytorchStreamWriter", "unexpected pos"))  # the first hides behind it
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) if torch_says else None


def _take_over(trainer: SFTTrainer, checkpoint: Path) -> None:
    """The weights and the curve of a training that is over: ``train()`` (transformers 5.24) would do one step more."""
    from transformers import TrainerState

    trainer._load_from_checkpoint(str(checkpoint))
    trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))


def _restore_token_count(trainer: SFTTrainer, checkpoint: Path) -> None:
    """TRL 1.16 counts tokens from 0 again after a resume; the curve's count goes on where it was."""
    history = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    counts = [log["num_tokens"] for log in history if "num_tokens" in log]
    trainer._total_train_tokens = int(counts[-1]) if counts else 0
