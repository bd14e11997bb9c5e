"""Several processes, on one host or on many, that run the same program."""

import jax
import numpy as np


def agreed(value: int) -> int:
    """Returns the first process's value in every process: what is measured, such as time, differs between them."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))
