from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_edge.clients import local_training, training
from fedjax_edge.core import Examples, TrainingStream, derive, permutation


def squared_error(params, batch, key):
    return (batch["x"] @ params - batch["y"]) ** 2, {"residual": batch["x"] @ params - batch["y"]}


def view(size, start=0, total=200):
    rng = np.random.default_rng(total)
    columns = {"x": rng.normal(size=(total, 3)).astype(np.float32), "y": rng.normal(size=total).astype(np.float32)}
    return Examples(columns, jnp.int32(start), jnp.int32(size), jnp.int32(0))


def by_hand(params, examples, order, batch_size, rate=0.05):
    """Plain SGD over consecutive batches of `order`, in float64."""
    for start in range(0, len(order), batch_size):
        rows = int(examples.start) + order[start : start + batch_size]
        x, y = examples.columns["x"][rows].astype(np.float64), examples.columns["y"][rows].astype(np.float64)
        params = params - rate * 2 * (x @ params - y) @ x / len(rows)
    return params


@pytest.mark.parametrize(("size", "batch_size", "epochs"), [(1, 4, 2), (7, 4, 3), (8, 4, 1), (50, 3, 2), (3, 50, 2)])
def test_batches_follow_the_documented_order(key, size, batch_size, epochs):
    examples = view(size, start=11)
    train = local_training(squared_error, optax.sgd(0.05), batch_size=batch_size, epochs=epochs)
    trained = jax.jit(train)(jnp.zeros(3), examples, key)

    params = np.zeros(3)
    for epoch in range(epochs):
        order = np.asarray(permutation(derive(key, TrainingStream.BATCHES, epoch), size)(jnp.arange(size)))
        params = by_hand(params, examples, order, batch_size)
    np.testing.assert_allclose(trained.params, params, rtol=1e-4, atol=1e-6)
    assert trained.steps == epochs * -(-size // batch_size)
    assert trained.metrics["loss"].count == epochs * size


def test_numbers_of_numpy_and_64_bits_change_nothing(key):
    examples = view(23)

    def trained(number):
        train = local_training(squared_error, optax.sgd(0.05), batch_size=number(10), epochs=number(2))
        return jax.jit(train)(jnp.zeros(3, jnp.float32), examples, key).params

    plain = trained(int)
    np.testing.assert_array_equal(trained(np.int16), plain)
    with jax.enable_x64(True):
        np.testing.assert_array_equal(trained(int), plain)


def seen(size, *, key, batch_size, **amount):
    """How often each of a client's examples is used, counted by a loss that is linear in a one-hot parameter."""
    columns = {"row": np.eye(40, dtype=np.float32)}
    examples = Examples(columns, jnp.int32(5), jnp.int32(size), jnp.int32(0))

    def loss(params, batch, key):
        return batch["row"] @ params * batch["row"].shape[0]

    train = local_training(loss, optax.sgd(1.0), batch_size=batch_size, **amount)
    return -np.asarray(jax.jit(train)(jnp.zeros(40), examples, key).params)


def test_every_epoch_visits_every_example_once_and_no_one_elses(key):
    counts = seen(10, key=key, batch_size=5, epochs=3)
    np.testing.assert_allclose(counts[5:15], 3)
    np.testing.assert_allclose(np.delete(counts, slice(5, 15)), 0)


def test_steps_go_on_into_new_epochs(key):
    counts = seen(10, key=key, batch_size=5, steps=7)
    assert counts.sum() == 35
    assert set(np.round(counts[5:15])) == {3, 4}


def test_the_last_batch_is_averaged_over_its_real_examples(key):
    counts = seen(3, key=key, batch_size=2, epochs=1)
    np.testing.assert_allclose(np.sort(counts[5:8]), [1, 1, 2])


def test_epochs_are_shuffled_anew(key):
    orders = [permutation(derive(key, TrainingStream.BATCHES, epoch), 30)(jnp.arange(30)) for epoch in range(2)]
    assert (orders[0] != orders[1]).any()


@pytest.mark.parametrize("size", [1, 63, 64, 65, 150])
def test_a_full_batch_is_the_gradient_of_the_mean(key, size):
    examples = view(size, start=20)
    train = local_training(squared_error, optax.sgd(0.05), batch_size=None, steps=2)
    trained = jax.jit(train)(jnp.zeros(3), examples, key)
    expected = by_hand(np.zeros(3), examples, np.tile(np.arange(size), 2), size)
    np.testing.assert_allclose(trained.params, expected, rtol=1e-4, atol=1e-6)
    assert trained.metrics["loss"].count == 2 * size


def test_a_narrow_gradient_of_many_chunks_keeps_them_all(key):
    def loss(params, batch, key):
        return jnp.broadcast_to(params.sum(), batch["x"].shape[:1]).astype(jnp.float32)

    examples = view(64 * 512, total=64 * 512)  # each chunk adds 1 / 512, which bfloat16 would lose from 1 / 2 on
    train = local_training(loss, optax.sgd(1.0), batch_size=None, steps=1)
    assert jax.jit(train)(jnp.zeros(2, jnp.bfloat16), examples, key).params.tolist() == [-1.0, -1.0]


@pytest.mark.parametrize(("steps", "blocks"), [(5, 1), (12, 1), (13, 2), (200, 17), (205, 18), (401, 35)])
def test_no_more_examples_are_shuffled_than_the_steps_need(key, monkeypatch, steps, blocks):
    drawn = []

    def counted(key, size):
        shuffle = permutation(key, size)

        def of(positions):
            jax.debug.callback(lambda: drawn.append(1))
            return shuffle(positions)

        return of

    monkeypatch.setattr(training, "permutation", counted)
    train = local_training(squared_error, optax.sgd(0.01), batch_size=10, steps=steps)  # 200 of an epoch, 12 a block
    trained = jax.jit(train)(jnp.zeros(3), view(2000, total=2000), key)
    jax.effects_barrier()
    assert len(drawn) == blocks and trained.steps == steps and trained.metrics["loss"].count == 10 * steps


def test_full_batch_epochs_are_steps(key):
    examples, sgd = view(9), optax.sgd(0.05)
    epochs = local_training(squared_error, sgd, batch_size=None, epochs=3)(jnp.zeros(3), examples, key)
    steps = local_training(squared_error, sgd, batch_size=None, steps=3)(jnp.zeros(3), examples, key)
    chex.assert_trees_all_equal(epochs, steps)


@pytest.mark.parametrize(
    "amount", [dict(batch_size=4, epochs=2), dict(batch_size=4, steps=3), dict(batch_size=None, steps=2)]
)
def test_no_examples_no_steps(key, amount):
    train = local_training(squared_error, optax.sgd(0.05), **amount)
    trained = jax.jit(train)(jnp.ones(3), view(0, start=200), key)
    np.testing.assert_array_equal(trained.params, np.ones(3))
    assert trained.steps == 0
    assert trained.metrics["loss"] == (0, 0)


def test_clients_of_unequal_size_side_by_side_get_what_they_get_alone(key):
    train = local_training(squared_error, optax.sgd(0.05), batch_size=4, epochs=2)
    sizes = [0, 1, 13, 60]
    columns = view(0).columns
    examples = Examples(columns, jnp.array([0, 0, 10, 50]), jnp.array(sizes), jnp.arange(4))
    axes = Examples(None, 0, 0, 0)
    together = jax.jit(jax.vmap(train, in_axes=(None, axes, None)))(jnp.zeros(3), examples, key)
    for i, size in enumerate(sizes):
        alone = jax.jit(train)(jnp.zeros(3), view(size, start=int(examples.start[i])), key)
        chex.assert_trees_all_close(jax.tree.map(lambda leaf, i=i: leaf[i], together), alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("amount", [dict(batch_size=4, epochs=2), dict(batch_size=None, steps=2)])
def test_what_others_hold_does_not_matter_even_if_it_is_not_a_number(key, amount):
    """The last batch is padded; the gradient of a masked NaN would still be NaN."""
    examples = view(5, start=50)
    spoilt = jax.tree.map(lambda column: np.full_like(column, np.nan), examples.columns)
    for name, column in spoilt.items():
        column[50:55] = examples.columns[name][50:55]
    train = jax.jit(local_training(squared_error, optax.sgd(0.05), **amount))
    alone = train(jnp.zeros(3), examples, key)
    chex.assert_trees_all_equal(train(jnp.zeros(3), examples._replace(columns=spoilt), key), alone)
    assert np.isfinite(alone.params).all()


def test_metrics_are_means_over_all_examples_of_all_steps(key):
    examples = view(7)
    train = local_training(squared_error, optax.sgd(0.0), batch_size=4, epochs=2)
    metrics = train(jnp.zeros(3), examples, key).metrics
    y = examples.columns["y"][:7]
    np.testing.assert_allclose(metrics["loss"].total, 2 * (y**2).sum(), rtol=1e-6)
    np.testing.assert_allclose(metrics["residual"].total, -2 * y.sum(), rtol=1e-6)


def test_the_optimizers_state_is_made_fresh(key):
    train = local_training(squared_error, optax.sgd(0.05, momentum=0.9), batch_size=None, steps=1)
    once = train(jnp.zeros(3), view(5), key).params
    plain = local_training(squared_error, optax.sgd(0.05), batch_size=None, steps=1)(jnp.zeros(3), view(5), key).params
    np.testing.assert_array_equal(once, plain)


def test_any_optimizer_will_do(key):
    with jax.numpy_dtype_promotion("standard"):  # optax's adam promotes
        train = local_training(squared_error, optax.adam(0.1), batch_size=4, steps=5)
        before, after = jnp.zeros(3), train(jnp.zeros(3), view(8), key).params
    examples = view(8).columns
    assert squared_error(after, examples, key)[0][:8].mean() < squared_error(before, examples, key)[0][:8].mean()


@pytest.mark.parametrize("amount", [dict(batch_size=4, epochs=1), dict(batch_size=None, steps=2)])
def test_an_optimizers_state_may_be_a_number_of_python(key, amount):
    def update(gradient, count, params=None):
        return jax.tree.map(lambda leaf: -0.05 * leaf, gradient), count + 1

    counting = optax.GradientTransformation(lambda params: 0, update)
    trained, plain = (
        local_training(squared_error, optimizer, **amount)(jnp.zeros(3), view(7), key)
        for optimizer in (counting, optax.sgd(0.05))
    )
    np.testing.assert_allclose(trained.params, plain.params, rtol=1e-6)


def test_each_step_draws_anew(key):
    def loss(params, batch, key):
        return params * jnp.round(1000 * jax.random.uniform(key)) * jnp.ones_like(batch["y"])

    params = [
        local_training(loss, optax.sgd(1.0), batch_size=4, steps=n)(jnp.float32(0), view(4), key).params
        for n in range(1, 4)
    ]
    draws = np.diff([0, *params])
    assert len(set(draws.tolist())) == 3


def test_a_gradient_can_be_adjusted(key):
    train = local_training(squared_error, optax.sgd(0.5), batch_size=4, steps=3)
    trained = train(jnp.ones(3), view(4), key, lambda gradient, params: params)
    np.testing.assert_allclose(trained.params, np.full(3, 0.5**3), rtol=1e-6)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (dict(batch_size=4), "exactly one of epochs and steps, got epochs=None and steps=None"),
        (dict(batch_size=4, epochs=1, steps=1), "exactly one of epochs and steps"),
        (dict(batch_size=0, epochs=1), "batch_size must be an integer of at least 1, got 0"),
        (dict(batch_size=4, epochs=0), "epochs must be an integer of at least 1, got 0"),
        (dict(batch_size=4, steps=1.5), "steps must be an integer of at least 1, got 1.5"),
    ],
)
def test_bad_arguments(bad, message):
    with pytest.raises(ValueError, match=message):
        local_training(squared_error, optax.sgd(0.1), **bad)


def test_a_learning_rate_is_no_optimizer():
    with pytest.raises(TypeError, match=r"optimizer must be an optax optimizer, such as .*, got 0.1"):
        local_training(squared_error, 0.1, batch_size=4, epochs=1)


def test_a_scalar_loss_is_an_error_before_training(key):
    train = local_training(lambda p, b, k: b["y"].mean(), optax.sgd(0.1), batch_size=4, epochs=1)
    with pytest.raises(TypeError, match=r"drop the `.mean\(\)`"):
        train(jnp.zeros(3), view(5), key)


def decayed(gradient, params):
    """An adjustment in which rows and columns are not alike."""
    return jax.tree.map(lambda g, p: g + 0.1 * jnp.cumsum(p, axis=0), gradient, params)


def reference(optimizer, params, examples, key, batch_size):
    """The documented order and plain gradients, adjusted, step by step."""
    state = optimizer.init(params)
    size = int(examples.size)
    order = permutation(derive(key, TrainingStream.BATCHES, 0), size)(jnp.arange(size))
    for start in range(0, size, batch_size):
        batch = jax.tree.map(lambda column, rows=order[start : start + batch_size]: column[rows], examples.columns)
        gradient = jax.grad(lambda p, batch=batch: logistic_loss(p, batch, None).mean())(params)
        updates, state = optimizer.update(decayed(gradient, params), state, params)
        params = optax.apply_updates(params, updates)
    return params


def logistic_loss(params, batch, key):
    logits = batch["x"] @ params["kernel"] + params["bias"][None]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])


def by_rows():
    """An optimizer to which rows and columns are not alike: each row's step has length 0.1."""

    def update(gradient, state, params):
        assert jax.tree.map(jnp.shape, gradient) == jax.tree.map(jnp.shape, params)
        return jax.tree.map(lambda g: -0.1 * g / (1e-6 + jnp.linalg.norm(g, axis=-1, keepdims=True)), gradient), state

    return optax.GradientTransformation(lambda params: (), update)


@pytest.mark.parametrize("columns", [3, 40])
@pytest.mark.parametrize("optimizer", [optax.sgd(0.1, momentum=0.9), optax.adamw(0.01), by_rows()])
@pytest.mark.parametrize("vmapped", [False, True])
def test_optimizers_and_adjustments_see_matrices_as_they_are(key, columns, optimizer, vmapped):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(21, 60)).astype(np.float32), rng.integers(0, columns, 21)
    examples = Examples({"x": x, "y": y}, jnp.int32(0), jnp.int32(21), jnp.int32(0))
    params = {"kernel": rng.normal(size=(60, columns)).astype(np.float32), "bias": np.zeros(columns, np.float32)}
    train = partial(local_training(logistic_loss, optimizer, batch_size=4, epochs=1), adjust=decayed)
    with jax.numpy_dtype_promotion("standard"):  # adam needs it
        if vmapped:
            twice = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), params)
            trained = jax.tree.map(lambda leaf: leaf[1], jax.vmap(lambda p: train(p, examples, key).params)(twice))
        else:
            trained = jax.jit(train)(params, examples, key).params
        expected = reference(optimizer, params, examples, key, 4)
    chex.assert_trees_all_close(trained, expected, rtol=1e-4, atol=1e-5)


def test_a_full_batch_steps_alike(key):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(150, 60)).astype(np.float32), rng.integers(0, 3, 150)
    examples = Examples({"x": x, "y": y}, jnp.int32(0), jnp.int32(150), jnp.int32(0))
    params = {"kernel": rng.normal(size=(60, 3)).astype(np.float32), "bias": np.zeros(3, np.float32)}
    train = local_training(logistic_loss, optax.sgd(0.1), batch_size=None, steps=1)
    trained = jax.jit(train)(params, examples, key).params
    gradient = jax.grad(lambda p: logistic_loss(p, examples.columns, None).mean())(params)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
    chex.assert_trees_all_close(trained, expected, rtol=1e-5, atol=1e-6)


def test_the_loss_is_traced_once(key):
    traces = []

    def counted(params, batch, key):
        traces.append(batch["x"].shape)
        return squared_error(params, batch, key)

    jax.make_jaxpr(local_training(counted, optax.sgd(0.1), batch_size=4, epochs=1))(jnp.zeros(3), view(9), key)
    assert traces == [(4, 3)]
