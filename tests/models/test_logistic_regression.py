import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_edge.core.trees import size as num_params  # noqa
