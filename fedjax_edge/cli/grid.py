"""The grid of a sweep, as the command line writes it: `option=value,value`."""

from typing import Any, get_args, get_type_hints

from fedjax_edge.cli.config import RunConfig

TRACED = ("client_learning_rate", "client_gradient_clip", "server_learning_rate", "clip_norm", "noise_multiplier")
STATIC = (
    "model",
    "cohort",
    "sampling",
    "local_epochs",
    "batch_size",
    "client_optimizer",
    "client_momentum",
    "server_optimizer",
    "server_momentum",
    "bits",
    "bits_down",
    "target_epsilon",
)


def parse_grid(texts: list[str]) -> dict[str, list[Any]]:
    """Returns the values of each option.

    Raises:
      ValueError: for an option that a sweep cannot vary, or a value that is not of its type.

    >>> parse_grid(["client-learning-rate=0.05,0.1", "bits=4,None"])
    {'client_learning_rate': [0.05, 0.1], 'bits': [4, None]}
    """
    grid = {}
    for text in texts:
        name, _, values = text.partition("=")
        name = name.strip("-").replace("-", "_")
        if name not in TRACED + STATIC or not values:
            raise ValueError(f"grid={text!r} must be OPTION=VALUE,VALUE with an option of {[*TRACED, *STATIC]}")
        if name in grid:
            raise ValueError(f"grid={text!r}: {name} comes twice")
        grid[name] = [_value(name, value) for value in values.split(",")]
    return grid


def parse_seeds(text: str) -> list[int]:
    """Returns the seeds of a text like "0,1,2".

    Raises:
      ValueError: for what is not an integer.
    """
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError:
        raise ValueError(f"seeds must be integers with commas between, got {text!r}") from None


def _value(name: str, text: str) -> Any:
    hint = get_type_hints(RunConfig)[name]
    kinds = get_args(hint) or (hint,)
    if type(None) in kinds and text == "None":
        return None
    choices = [choice for kind in kinds for choice in get_args(kind) or [kind] if isinstance(choice, str)]
    if choices:
        if text not in choices:
            raise ValueError(f"{name} must be one of {choices}, got {text!r}")
        return text
    kind = int if int in kinds else float
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{name} must be of type {kind.__name__}, got {text!r}") from None
