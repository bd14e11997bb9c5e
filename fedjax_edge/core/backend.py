"""Which backend a model is traced for; where only shapes are asked for, JAX is not started to find out."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax

_only_shapes = ContextVar("only_shapes", default=False)


@contextmanager
def only_shapes() -> Iterator[None]:
    """Within it, what is traced is not run: a model may be built before `use_cpu_cores` is called."""
    token = _only_shapes.set(True)
    try:
        yield
    finally:
        _only_shapes.reset(token)


def is_cpu() -> bool:
    """Returns whether models are traced for a CPU, or only for their shapes, which no backend changes."""
    return _only_shapes.get() or jax.default_backend() == "cpu"
