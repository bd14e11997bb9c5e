"""What every source of data returns."""

from typing import Any, NamedTuple


class Split(NamedTuple):
    """Examples to train on, and examples to test with."""

    train: Any
    test: Any
