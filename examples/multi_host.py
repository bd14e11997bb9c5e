"""One run over several processes, on one machine or on many: the same code, started once for each process.

    python examples/multi_host.py --launch 2

starts two on this machine. On many, start it on each by whatever you start programs with:

    python examples/multi_host.py --coordinator HOST:PORT --processes 8 --index 3

Every process loads the same data and makes the same calls; the clients of a round are spread over the devices of all
of them. On a cluster that JAX knows (Slurm, Cloud TPU), `jax.distributed.initialize()` needs no arguments.
"""

import argparse
import socket
import subprocess
import sys

import jax
import optax

import fedjax_edge as fe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--launch", type=int, help="start so many processes on this machine")
    parser.add_argument("--coordinator", help="host:port of the process of index 0")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--index", type=int)
    parser.add_argument("--devices", type=int, default=1, help="CPU devices of each process")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    if options.launch:
        raise SystemExit(launch(options.launch, options.devices, options.rounds))
    fe.use_cpu_cores(options.devices)
    if options.coordinator:
        jax.distributed.initialize(options.coordinator, options.processes, options.index)
    train(options.rounds)


def launch(processes: int, devices: int, rounds: int) -> int:
    """Starts the processes and returns the first exit status that is not zero, or zero."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    common = [sys.executable, __file__, "--coordinator", address, "--processes", str(processes)]
    common += ["--devices", str(devices), "--rounds", str(rounds)]
    started = [subprocess.Popen([*common, "--index", str(index)]) for index in range(processes)]
    return next((status for status in [process.wait() for process in started] if status), 0)


def train(rounds: int) -> None:
    train, test = fe.data.mnist_sample()
    population = fe.data.from_partition(
        train, fe.data.partition.dirichlet_labels(jax.random.key(0), train["label"], num_clients=100, alpha=0.3)
    )
    model = fe.models.small_cnn()
    loss_fn = fe.models.classification(model)
    result = fe.run(
        fe.algorithms.fedavg(loss_fn, optax.sgd(0.1), batch_size=12, epochs=1),
        model.init(jax.random.key(1)),
        population,
        sampler=fe.data.uniform(100, 20),
        rounds=rounds,
        key=jax.random.key(2),
        evaluation=fe.evaluation(loss_fn, test),
        eval_every=5,
    )
    if jax.process_index() == 0:
        accuracy = result.history.last("test_accuracy")
        print(f"test accuracy {accuracy:.2%} on {jax.device_count()} devices of {jax.process_count()} processes")


if __name__ == "__main__":
    main()
