import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_edge as fe
from fedjax_edge.simulation.hosted import PER_CLIENT, _for_all, cohort_views

TWO_DEVICES = fe.make_plan(width=1, devices=2)


def run(linear, algorithm, population, rounds=6, **options):
    options = dict(sampler=linear.sampler, evaluation=linear.evaluation, plan=TWO_DEVICES, progress=False) | options
    return fe.run(algorithm, linear.params, population, rounds=rounds, key=jax.random.key(1), **options)


def without_seconds(history):
    return {name: column for name, column in history.items() if name != "seconds"}


def with_replacement():
    """Five draws of ten clients, the last the likeliest."""

    def sample(key, number):
        ids = jax.random.choice(key, 10, (5,), p=jnp.arange(10) / 45)
        return fe.core.Cohort(ids.astype(jnp.int32), jnp.ones(5, bool))

    return fe.core.Sampler(sample, width=5, num_clients=10, expected_size=5.0)


@pytest.mark.parametrize("sampler", ["poisson", "uniform", "everyone", "with replacement"])
@pytest.mark.parametrize("stateful", [False, True])
def test_a_population_on_the_host_gives_the_same_to_the_bit(linear, sampler, stateful, tmp_path):
    sampler = {
        "poisson": fe.data.poisson(10, 0.4), "uniform": fe.data.uniform(10, 3), "everyone": fe.data.everyone(10),
        "with replacement": with_replacement(),
    }[sampler]  # fmt: skip
    memory = fe.compression.error_feedback(fe.compression.top_k(0.5))
    delta = fe.compression.delta_broadcast(fe.compression.stochastic_uniform(4))
    algorithm = linear.scaffold(uplink=memory, downlink=delta) if stateful else linear.fedavg()
    resident = run(linear, algorithm, linear.population, sampler=sampler)
    for state_dir in (None, tmp_path / "states"):
        hosted = run(linear, algorithm, fe.data.on_host(linear.population, state_dir), sampler=sampler)
        chex.assert_trees_all_equal(hosted.params, resident.params)
        chex.assert_trees_all_equal(without_seconds(hosted.history), without_seconds(resident.history))
        for part in PER_CLIENT:
            chex.assert_trees_all_equal(getattr(hosted.state, part), jax.device_get(getattr(resident.state, part)))
    if stateful:
        assert isinstance(hosted.state.clients["w"], np.memmap)
        assert len(list((tmp_path / "states").iterdir())) == len(
            jax.tree.leaves((hosted.state.clients, hosted.state.uplink, hosted.state.received))
        )


def test_the_states_of_another_run_stay_what_they_are(linear, tmp_path):
    population, saved = fe.data.on_host(linear.population, tmp_path / "states"), fe.checkpoints(tmp_path / "saved")
    first = run(linear, linear.scaffold(), population, rounds=2, checkpoints=saved)
    controls = np.array(first.state.clients["w"])
    assert controls.any()

    def files():
        return {path: path.read_bytes() for path in (tmp_path / "states").iterdir()}

    before = files()
    with pytest.raises(ValueError, match="holds a checkpoint"):
        run(linear, linear.scaffold(), population, rounds=2, checkpoints=saved)
    assert files() == before
    run(linear, linear.scaffold(), population, rounds=1)
    assert files() != before
    np.testing.assert_array_equal(first.state.clients["w"], controls)


def test_leaves_of_like_names_have_files_of_their_own(linear, tmp_path):
    kept = _for_all({"a b": np.zeros((1, 2)), "a_b": np.ones((1, 2))}, fe.data.on_host(linear.population, tmp_path))
    assert not kept["a b"].any() and kept["a_b"].all()


def test_columns_may_be_memory_mapped(linear, tmp_path):
    for name, column in linear.population.columns.items():
        np.save(tmp_path / f"{name}.npy", column)
    mapped = {name: np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in linear.population.columns}
    population = fe.data.on_host(fe.FederatedDataset(columns=mapped, offsets=linear.population.offsets))
    assert isinstance(population.columns["x"], np.memmap)
    chex.assert_trees_all_equal(
        run(linear, linear.fedavg(), population).params, run(linear, linear.fedavg(), linear.population).params
    )


def test_fixed_cohorts_of_equal_clients_compile_once(linear, compilations):
    client = {"x": np.ones((4, 3), np.float32), "y": np.ones(4, np.float32)}
    equal = fe.data.on_host(fe.data.from_client_arrays([client] * 10))
    with compilations("run_segment") as messages:
        run(linear, linear.fedavg(), equal, sampler=fe.data.uniform(10, 3), rounds=9)
    assert len(messages) == 1


def test_a_second_run_compiles_nothing(linear, compilations):
    client = {"x": np.ones((4, 3), np.float32), "y": np.ones(4, np.float32)}
    equal = fe.data.on_host(fe.data.from_client_arrays([client] * 10))
    algorithm, sampler = linear.scaffold(), fe.data.uniform(10, 3)
    run(linear, algorithm, equal, sampler=sampler, rounds=2)
    with compilations() as messages:
        run(linear, algorithm, equal, sampler=sampler, rounds=3)
    assert not messages


def test_only_the_cohorts_examples_travel():
    sizes = np.full(1_000_000, 2)
    columns = {"x": np.broadcast_to(np.float32(1), (2_000_000, 1000))}  # 8 GB if it were real
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    population = fe.data.on_host(fe.FederatedDataset(columns=columns, offsets=offsets))
    sampler = fe.data.poisson(1_000_000, 1e-4)

    class Program:  # what `cohort_views` reads of one
        plan = TWO_DEVICES

    Program.sampler = sampler
    for view in cohort_views(population, Program, jax.random.key(0), 0, 3):
        assert view.columns["x"].shape[0] <= 2 * sampler.width
        assert view.num_states == sampler.width


def test_an_algorithm_of_another_making_is_refused(linear):
    algorithm = linear.fedavg()._replace(init=lambda params, key, population: params)
    with pytest.raises(TypeError, match=r"needs an algorithm made by fe\.federated"):
        run(linear, algorithm, fe.data.on_host(linear.population))


def test_a_client_of_the_cohort_is_found_by_its_id():
    data = fe.data.from_client_arrays([{"x": np.arange(n, dtype=np.float32) + 10 * n} for n in (1, 2, 3, 4)])
    cohort = fe.core.Cohort(np.array([3, 0, 1]), np.array([True, False, True]))
    view = fe.data.on_host(data).view(cohort, capacity=8)
    assert jax.tree.leaves(view.columns)[0].shape == (8,)
    for client in (3, 1):
        examples = view.examples(client)
        assert int(examples.size) == client + 1 and int(examples.client) == client
        np.testing.assert_array_equal(
            view.columns["x"][int(examples.start) :][: client + 1], data.client_columns(client)["x"]
        )
    rows = view.state_row(jnp.array([1, 3]))
    assert rows.tolist() == [0, 1] and view.num_clients == 4 and view.num_states == 3


def test_a_client_drawn_twice_is_there_once():
    data = fe.data.on_host(fe.data.from_client_arrays([{"x": np.ones(n)} for n in (2, 3, 9)]))
    view = data.view(fe.core.Cohort(np.array([2, 1, 2]), np.ones(3, bool)), at_most=data.largest_cohort(3))
    assert view.ids.tolist() == [1, 2, np.iinfo(np.int32).max] and view.offsets.tolist() == [0, 3, 12, 12]


def test_keys_cannot_stay_on_the_host(linear):
    columns = linear.population.columns
    keys = jax.random.split(jax.random.key(0), len(columns["y"]))
    keyed = fe.FederatedDataset(columns={**columns, "key": keys}, offsets=linear.population.offsets)
    with pytest.raises(TypeError, match=r"columns\['key'\] holds keys, which cannot stay on the host"):
        fe.data.on_host(keyed)

    def update(params, examples, state, key):
        return fe.core.ClientOutput(params, jnp.float32(1), state, {})

    client = fe.core.ClientUpdate(lambda params: {"own": jax.random.key(0)}, update)
    algorithm = fe.federated(client, optax.sgd(1.0), fe.aggregation.weighted_mean())
    with pytest.raises(TypeError, match=r"the state of a client, \['clients'\]\['own'\] holds keys"):
        run(linear, algorithm, fe.data.on_host(linear.population))
    assert run(linear, algorithm, linear.population).history.rounds == 6
