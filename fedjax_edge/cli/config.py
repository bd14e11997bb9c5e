"""The options of a run: one dataclass, which is the command line, the configuration file and the record of the run."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from fedjax_edge.core import checks
from fedjax_edge.privacy.accounting import check_delta


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Train one model on many simulated edge devices.

    `--config FILE` repeats a run from its config.json; further options change it. `--resume DIR` goes on with a run
    that was stopped, or for more `--rounds`.

    Without options: 300 devices of 33 or 34 images each with a label mix of its own, half of them drawn at random each
    round, 8-bit uplinks, and differential privacy for whole devices.
    """

    dataset: Literal["mnist-sample", "mnist", "shakespeare"] = "mnist-sample"
    """The data: a bundled sample of MNIST (10,000 images), the full one (downloaded), or bundled Shakespeare."""
    data_dir: Path | None = None
    """Where the files of the full MNIST are, or are downloaded to."""
    partition: Literal["iid", "dirichlet", "shards", "classes", "power-law", "log-normal", "natural"] | None = None
    """How examples are dealt to devices. Default: dirichlet for MNIST; natural, by speaking role, for Shakespeare."""
    skew: float | None = None
    """Of the partition: dirichlet concentration (0.3), shards or classes per device (2), power-law exponent (1.5) or
    log-normal sigma (1)."""
    model: Literal["small-cnn", "cnn", "2nn", "logistic", "gru"] | None = None
    """The model. Default: small-cnn (6,746 parameters) for MNIST, gru (18,761) for Shakespeare."""
    clients: int | None = None
    """Devices in all. Default: 300; with the natural partition, as many as there are."""
    cohort: int | None = None
    """Devices in a round, expected. Default: half of them."""
    sampling: Literal["poisson", "uniform", "all"] = "poisson"
    """How a round's devices are drawn: each by itself (what a small epsilon needs), a fixed number, or all of them."""

    rounds: int = 40
    """Rounds of training."""
    local_epochs: int = 2
    """Passes over its own examples that a device makes in a round."""
    batch_size: int = 12
    """Examples in a local step."""
    client_optimizer: Literal["sgd", "adam"] = "sgd"
    """The optimizer of the local steps."""
    client_learning_rate: float = 0.1
    """Its learning rate."""
    client_momentum: float = 0.0
    """Momentum of a client's SGD."""
    client_gradient_clip: float | None = None
    """Largest norm of the gradient of a local step."""
    server_optimizer: Literal["sgd", "adam", "yogi", "adagrad"] = "sgd"
    """The optimizer of the server."""
    server_learning_rate: float | None = None
    """Its learning rate. Default: 0.8 / clip-norm where updates are clipped, otherwise 1."""
    server_momentum: float = 0.0
    """Momentum of the server's SGD."""

    bits: int | None = 8
    """Bits for each number of an update on its way up; None sends 32."""
    bits_down: int | None = None
    """Bits for each number by which the model changed since the last broadcast; None sends the model itself."""
    clip_norm: float | None = 0.2
    """Largest norm of a device's update in the sum; None leaves updates as they are."""
    noise_multiplier: float | None = 2.75
    """Standard deviation of the noise on the sum, over the clip norm; None adds no noise, and is not private."""
    target_epsilon: float | None = None
    """The epsilon to end with: the noise multiplier is calibrated to it, in the place of the one above."""
    delta: float = 1e-3
    """The delta at which epsilon is stated; it should be below 1 / devices."""
    accounted_only: bool = False
    """Show and write only what epsilon covers: nothing about the devices but the model and its test results."""

    seed: int = 0
    """The run's seed; the same options and seed give the same result to the bit. Epsilon holds against those who do not
    know it: config.json holds it too."""
    devices: int | None = None
    """XLA devices to use. Default: all; on a CPU, one per core. A sweep on accelerators takes all it sees."""
    eval_every: int = 1
    """Rounds between two evaluations."""
    checkpoint_every: int = 10
    """Rounds between two checkpoints, from which `--resume` goes on."""
    out: Path | None = None
    """A new folder for the results and checkpoints. Default: runs/ and the time."""

    def resolved(self) -> "RunConfig":
        """Returns the options with every default that depends on others filled in.

        Raises:
          ValueError: for options that do not go together.
        """
        text = self.dataset == "shakespeare"
        config = replace(
            self,
            partition=self.partition or ("natural" if text else "dirichlet"),
            model=self.model or ("gru" if text else "small-cnn"),
            clients=300 if self.clients is None and not text else self.clients,
        )
        config._check_numbers()
        config._check_combinations()
        if config.server_learning_rate is not None:
            return config
        return replace(config, server_learning_rate=1.0 if config.clip_norm is None else 0.8 / config.clip_norm)

    def _check_numbers(self) -> None:
        for name in ("client_learning_rate", "client_gradient_clip", "server_learning_rate", "clip_norm"):
            if getattr(self, name) is not None:
                checks.positive(name, getattr(self, name))
        for name in ("client_momentum", "server_momentum"):
            checks.non_negative(name, getattr(self, name))
        for name in ("rounds", "eval_every", "checkpoint_every"):
            checks.integer(name, getattr(self, name))
        checks.integer("seed", self.seed, at_least=0, at_most=2**32 - 1)
        if self.skew is not None:
            checks.non_negative("skew", self.skew)
        check_delta(self.delta)

    def _check_combinations(self) -> None:
        text, natural = self.dataset == "shakespeare", self.partition == "natural"
        private = self.noise_multiplier is not None or self.target_epsilon is not None
        if natural != text:
            raise ValueError(f"partition={self.partition} does not go with dataset={self.dataset}")
        if (self.model == "gru") != text:
            raise ValueError(f"model={self.model} does not go with dataset={self.dataset}")
        if natural and self.clients is not None:
            raise ValueError(f"clients={self.clients}: with the natural partition the data say how many there are")
        if self.partition in ("iid", "natural") and self.skew is not None:
            raise ValueError(f"skew={self.skew} means nothing for partition={self.partition}")
        if self.data_dir is not None and self.dataset != "mnist":
            raise ValueError(f"data_dir={self.data_dir} means nothing for dataset={self.dataset}, which is bundled")
        if self.sampling == "all" and self.cohort is not None:
            raise ValueError(f"cohort={self.cohort} means nothing for sampling=all")
        for side in ("client", "server"):
            optimizer = getattr(self, f"{side}_optimizer")
            if optimizer != "sgd" and getattr(self, f"{side}_momentum"):
                raise ValueError(f"{side}_momentum is SGD's, not {optimizer}'s")
        if private and self.clip_norm is None:
            raise ValueError("noise without clipping is not privacy: give clip_norm, or noise_multiplier None")

    def identity(self) -> dict[str, Any]:
        """Returns the options that decide a run's result, but for its length: a resumed run must share them."""
        elsewhere = ("rounds", "eval_every", "data_dir", "devices", "checkpoint_every", "out")
        return {name: value for name, value in self.to_dict().items() if name not in elsewhere}

    @classmethod
    def from_dict(cls, options: dict[str, Any]) -> "RunConfig":
        """Returns the configuration that `to_dict` made the options of.

        Raises:
          ValueError: for options that do not exist, or values that they do not take.
        """
        unknown = set(options) - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"unknown options {sorted(unknown)}; valid are {[field.name for field in fields(cls)]}")
        paths = {name: Path(options[name]) for name in ("data_dir", "out") if options.get(name) is not None}
        kinds = get_type_hints(cls)
        for name, value in (options | paths).items():
            if not _is_one(value, kinds[name]):
                raise ValueError(f"{name} must be {_in_words(kinds[name])}, got {value!r}")
        return cls(**{**options, **paths})

    def to_dict(self) -> dict[str, Any]:
        """Returns the options as JSON has them."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def _is_one(value: Any, kind: Any) -> bool:
    """Returns whether a value is of an option's kind: one of some words, a type, or a union of these."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_args(kind):
        return any(_is_one(value, one) for one in get_args(kind))
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    return isinstance(value, kind)


def _in_words(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if get_args(kind):
        return " or ".join(map(_in_words, get_args(kind)))
    return "None" if kind is NoneType else kind.__name__
