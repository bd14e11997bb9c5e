"""What encoding an update costs beside training it: seconds of each codec over those of one local epoch.

    python benchmarks/encoding.py [--repeats 15] [--codecs top_k eden]

The update is that of W1's perceptron, 199,210 parameters, and the epoch 600 examples in batches of 10, both on one
device and compiled. Codec and epoch take turns, and a ratio is the median over the turns of one divided by the other.
Encoding alone is what a client does; the simulator decodes as well, which the second ratio contains. Ends with status 1
if a codec takes longer to encode than the epoch.
"""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import fedjax_edge as fe
from fedjax_edge import compression
from fedjax_edge.core import as_transform
from fedjax_edge.core.protocols import PyTree

EXAMPLES, BATCH = 600, 10
KEY = jax.random.key(0)


def transforms(params: PyTree) -> dict[str, object]:
    """Every codec, and every transform with a codec of its own, in a usual setting."""
    mask = compression.magnitude_mask(params, 0.8)
    return {
        "fixed_point": compression.fixed_point(8),
        "stochastic_uniform": compression.stochastic_uniform(8),
        "stochastic_uniform, 4 bits": compression.stochastic_uniform(4),
        "symmetric": compression.symmetric(8),
        "qsgd": compression.qsgd(127),
        "terngrad": compression.terngrad(),
        "natural_compression": compression.natural_compression(),
        "sign": compression.sign(),
        "scaled_sign": compression.scaled_sign(),
        "half_precision": compression.half_precision(),
        "half_precision, 8 bits": compression.half_precision(jnp.float8_e4m3fn),
        "rotated": compression.rotated(compression.stochastic_uniform(4)),
        "drive": compression.drive(),
        "eden": compression.eden(4),
        "top_k": compression.top_k(0.1),
        "per_leaf": compression.per_leaf(compression.top_k(0.1)),
        "random_k": compression.random_k(0.1),
        "compose": compression.compose(compression.top_k(0.1), compression.stochastic_uniform(8)),
        "masked": compression.masked(mask),
        "count_sketch": compression.count_sketch(5, 4000),
        "low_rank": compression.low_rank(4),
        "power_sgd": compression.power_sgd(4),
        "error_feedback": compression.error_feedback(compression.top_k(0.1)),
        "entropy_coded": compression.entropy_coded(compression.qsgd(7)),
    }


@dataclass(frozen=True)
class Options:
    """Measures encoding beside one local epoch."""

    codecs: tuple[str, ...] = ()
    """Which ones; by default all."""
    repeats: int = 15
    """Turns of each codec and the epoch."""


def seconds(fn: Callable[[], PyTree]) -> float:
    started = time.perf_counter()
    jax.block_until_ready(fn())
    return time.perf_counter() - started


def epoch(params: PyTree) -> Callable[[], PyTree]:
    """Returns one local epoch on random images, ready to be called."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (EXAMPLES, 28, 28), np.uint8)
    labels = rng.integers(0, 10, EXAMPLES, np.int32)
    population = fe.data.from_client_arrays([{"image": images, "label": labels}])
    loss_fn = fe.models.classification(fe.models.mnist_2nn())
    client = fe.clients.local_sgd(loss_fn, optax.sgd(0.1), batch_size=BATCH, epochs=1)
    update = jax.jit(lambda params, population, key: client.update(params, population.examples(0), (), key).update)
    return partial(update, params, population, KEY)


def main(options: Options) -> int:
    params = fe.models.mnist_2nn().init(KEY)
    train = epoch(params)
    update = jax.block_until_ready(train())
    parts = {name: part for name, part in transforms(params).items() if not options.codecs or name in options.codecs}
    print(f"{jax.default_backend()}, load {os.getloadavg()[0]:.1f} at the start; ratios to one local epoch")
    print(f"{'codec':<28} {'epoch, ms':>10} {'encode, ms':>10} {'ratio':>7} {'with decoding':>14}")
    failed = False
    for name, part in parts.items():
        encode, transform = getattr(part, "encode", None), as_transform(part)
        memory = transform.init(update)
        whole = partial(jax.jit(transform.apply), update, memory, KEY)
        once = whole if encode is None else partial(jax.jit(encode), update, KEY)
        jax.block_until_ready((whole(), once()))
        rows = [(seconds(train), seconds(once), seconds(whole)) for _ in range(options.repeats)]
        trained, encoded, _ = (statistics.median(column) for column in zip(*rows, strict=True))
        ratio, with_decoding = (statistics.median(row[place] / row[0] for row in rows) for place in (1, 2))
        failed |= ratio >= 1
        numbers = f"{1e3 * trained:>10.2f} {1e3 * encoded:>10.2f} {ratio:>7.2f} {with_decoding:>14.2f}"
        print(f"{name:<28} {numbers}", flush=True)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Options, description=__doc__)))
