"""Several processes that train one model, as ``accelerate launch`` or ``torchrun`` start them; alone, all is as ever.

Every process runs the same program on a GPU of its own and sees its share of each optimizer step's rows; gradients are
averaged between them (DDP). The first process, rank 0, is the one that writes and prints. The launchers say who is who
in the environment; see https://docs.pytorch.org/docs/stable/elastic/run.html, "Environment Variables".
"""

from __future__ import annotations

import math
import os
from typing import Any

from labkit.errors import LabError
from labkit.models.profiles import Profile


def count() -> int:
    """How many processes train together; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_first() -> bool:
    """Whether this is the process that writes and prints; True without a launcher."""
    return int(os.environ.get("RANK", 0)) == 0


def local_rank() -> int:
    """The number of this process on its machine, which is the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0))


def share(profile: Profile) -> tuple[int, int]:
    """Rows of a forward pass and forward passes of an optimizer step, for one process of several.

    The rows of an optimizer step stay ``profile.rows_per_step`` over all processes, so that the learning rate and the
    curve mean the same. Accumulated batches are dealt out first: each then has the very rows, and the padding, that it
    has in a single process.

    Raises:
        LabError: the rows of a step cannot be dealt out evenly.
    """
    by_accumulation = math.gcd(profile.accumulation, count())
    by_batch = count() // by_accumulation
    if profile.batch % by_batch == 0:
        return profile.batch // by_batch, profile.accumulation // by_accumulation
    given = f"batch={profile.batch}, accumulation={profile.accumulation} on {count()} processes"
    rule = "every process needs as many rows of a step as the others"
    raise LabError(given, rule, f"use a batch divisible by {by_batch}")


def from_first(value: Any) -> Any:
    """What the first process has as ``value``, for all; each must call it."""
    if count() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    meet()
    return broadcast_object_list([value])[0]


def least(value: Any) -> Any:
    """The smallest ``value`` that a process has, for all; each must call it."""
    if count() == 1:
        return value
    from accelerate.utils import gather_object

    meet()
    return min(gather_object([value]))


def meet() -> None:
    """Wait until every process is here; the first time makes torch's processes known to each other."""
    if count() > 1:
        import torch
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available()).wait_for_everyone()
