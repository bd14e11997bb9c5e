"""An audit stays below the claim of a correct mechanism, and goes above it for noise too small, a clip left out and a
key used twice.

Keys are fixed, so that each test passes always or never. Over other keys a correct mechanism is refuted with
probability at most 5 % (in fact far below, as the theorem is loose for Gaussian noise: over 10 keys the bound was 0.97
to 1.21 for an epsilon of 2.02), and half the noise was found with each of these keys (2.11 to 2.38).
"""

import dp_accounting
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_edge as fe
from fedjax_edge.core.protocols import PoissonSampling
from fedjax_edge.privacy import audit_aggregator, audit_algorithm, gaussian_mean

DELTA, MULTIPLIER = 1e-5, 2.8  # two rounds, everyone: epsilon 2.02
UPDATE = {"kernel": jnp.zeros((30, 33)), "bias": jnp.zeros(10)}  # as many numbers as canaries

correct = gaussian_mean(1.0, MULTIPLIER, denominator=50)


def audited(aggregator, seed=0, **options):
    return audit_aggregator(aggregator, UPDATE, key=jax.random.key(seed), **{"delta": DELTA, **options})


def test_a_correct_mechanism_is_not_refuted_and_looks_like_what_it_is():
    audit = audited(correct)
    expected = dp_accounting.get_epsilon_gaussian(MULTIPLIER / np.sqrt(2), DELTA)
    np.testing.assert_allclose(audit.claim.epsilon, expected, rtol=1e-12)
    assert 0.3 * audit.claim.epsilon < audit.lower_bound.epsilon < audit.claim.epsilon
    assert not audit.refutes_claim
    # Over other keys the estimate is 1.08 claims with a standard deviation of 0.064 claims: 3.4 of these either way.
    assert 0.86 < audit.estimate / audit.claim.epsilon < 1.3


half_the_noise = correct._replace(finish=gaussian_mean(1.0, MULTIPLIER / 2, denominator=50).finish)
unclipped = correct._replace(contribution=lambda update, weight, state: update)
a_leaf_unclipped = correct._replace(
    contribution=lambda update, weight, state: update | {"kernel": fe.privacy.clip_by_norm(update["kernel"], 1.0)}
)
a_reused_key = correct._replace(finish=lambda total, state, key: correct.finish(total, state, jax.random.key(0)))


@pytest.mark.parametrize(
    ("broken", "options"),
    [
        (half_the_noise, {}),
        (unclipped, {}),
        (a_reused_key, {}),
        (a_leaf_unclipped, {"canaries": 2, "runs": 1000}),
    ],
    ids=["half the noise", "unclipped", "a reused key", "a leaf unclipped"],
)
def test_a_planted_bug_refutes_the_claim(broken, options):
    audit = audited(broken, **options)
    assert audit.lower_bound.epsilon > audit.claim.epsilon and audit.refutes_claim
    assert audit.estimate > audit.claim.epsilon


def test_an_unclipped_weight_refutes_the_claim():
    weighted = gaussian_mean(1.0, MULTIPLIER, denominator=50, max_weight=2.0)
    assert not audited(weighted, runs=4).refutes_claim
    heavy = weighted._replace(
        contribution=lambda update, weight, state: optax.tree.scale(weight, fe.privacy.clip_by_norm(update, 1.0))
    )
    assert audited(heavy, runs=4).refutes_claim


def test_no_claim_is_refuted_where_none_is_made():
    silent = audited(fe.aggregation.weighted_mean(), runs=1)
    assert silent.claim is None and not silent.refutes_claim and silent.lower_bound.epsilon > 2
    assert audited(gaussian_mean(1.0, 0.0, denominator=50), runs=1).claim is None
    nothing = audited(correct._replace(finish=lambda total, state, key: (optax.tree.zeros_like(total), state)), runs=1)
    assert nothing.lower_bound.epsilon == nothing.estimate == 0


def test_scores_are_cosines_of_orthogonal_canaries():
    """Without noise the aggregate is the sum of those included: cosine 1 / sqrt(their number), and 0 of the others."""
    audit = audited(gaussian_mean(1.0, 0.0, denominator=50), runs=2)
    assert audit.scores.shape == audit.included.shape == (2, 1000)
    expected = audit.included / np.sqrt(audit.included.sum(1, keepdims=True))
    np.testing.assert_allclose(audit.scores, expected, atol=1e-4)
    assert 400 < audit.included[0].sum() < 600 and (audit.included[0] != audit.included[1]).mean() > 0.4


def squared_error(params, batch, key):
    return jnp.square(batch["x"] @ params["w"] - batch["y"])


HONEST, CANARIES = 20, 100
sampler = fe.data.poisson(HONEST + CANARIES, 0.8)
rows = np.random.default_rng(0).normal(size=(2 * HONEST, 121)).astype(np.float32)
population = fe.data.from_arrays({"x": rows[:, :120], "y": rows[:, 120]}, client_ids=np.repeat(np.arange(HONEST), 2))
start = {"w": jnp.zeros(120)}


def whole(aggregator, uplink=fe.core.IDENTITY):
    client = fe.clients.local_sgd(squared_error, optax.sgd(0.01), batch_size=1, epochs=1)
    return lambda insert: fe.federated(insert(client), optax.sgd(0.5), aggregator, uplink)


def audited_whole(make, **options):
    settings = {"sampler": sampler, "rounds": 4, "delta": DELTA, "key": jax.random.key(1), "canaries": CANARIES}
    return audit_algorithm(make, start, population, **{**settings, "runs": 10, **options})


def test_a_whole_algorithm_with_honest_clients_poisson_cohorts_and_a_quantizer():
    mechanism = gaussian_mean(0.5, 4.0, denominator=sampler.expected_size)
    audit = audited_whole(whole(mechanism, fe.compression.stochastic_uniform(bits=8)))
    assert isinstance(sampler.sampling, PoissonSampling)
    assert audit.claim == mechanism.accountant(sampler.sampling, 4, DELTA)
    assert not audit.refutes_claim
    assert 0.5 * audit.claim.epsilon < audit.estimate < 1.5 * audit.claim.epsilon  # of 1,000 canaries, and no bound
    reused = mechanism._replace(finish=lambda total, state, key: mechanism.finish(total, state, jax.random.key(0)))
    assert audited_whole(whole(reused)).refutes_claim


def test_the_final_model_shows_less_than_all_of_them():
    """A key used in every round cancels between models, and not in the last of them."""
    mechanism = gaussian_mean(0.5, 4.0, denominator=sampler.expected_size)
    reused = mechanism._replace(finish=lambda total, state, key: mechanism.finish(total, state, jax.random.key(0)))
    every, final = (audited_whole(whole(reused), final_only=final_only) for final_only in (False, True))
    assert final.estimate < every.estimate / 2


def test_honest_clients_train_as_without_canaries():
    """With coins that all fell on tails, canaries are as good as absent: the trained model is that of a plain run."""
    from fedjax_edge.privacy.audit import _with_canaries, _WithCanaries

    everyone, cohort = _WithCanaries(population, 3), fe.core.Cohort(jnp.arange(HONEST + 3), jnp.ones(HONEST + 3, bool))
    mean = fe.aggregation.weighted_mean()

    def insert(client):
        silent = {"vectors": jnp.zeros((3, 120)), "unravel": lambda vector: {"w": vector}}
        return _with_canaries(client, honest=HONEST, weight=1e3, **silent)

    def trained(insert, population, cohort):
        algorithm = whole(mean)(insert)
        state = algorithm.init(start, jax.random.key(2), population)
        state, record = jax.jit(algorithm.round)(state, cohort, population)
        return algorithm.params(state)["w"], record

    with_canaries, record = trained(insert, everyone, cohort)
    alone, _ = trained(lambda client: client, population, jax.tree.map(lambda leaf: leaf[:HONEST], cohort))
    np.testing.assert_allclose(with_canaries, alone, rtol=1e-5, atol=1e-7)
    assert record.clients == HONEST + 3 and record.rejected == 0


def test_updates_of_another_form_than_the_model_are_refused():
    def make(insert):
        client = fe.clients.local_sgd(squared_error, optax.sgd(0.01), batch_size=1, epochs=1)
        both = client._replace(update=lambda *a: client.update(*a)._replace(update=(start, start)))
        return fe.federated(insert(both), optax.sgd(0.5), fe.aggregation.uniform_mean())

    with pytest.raises(TypeError, match="updates of the form of the parameters"):
        audited_whole(make, runs=1)


def test_a_claim_about_examples_is_not_put_to_whole_clients():
    def make(insert):
        mechanism = fe.privacy.dp_sgd(0.5, 1.0, batch_size=1, epochs=1)
        client = fe.clients.local_sgd(squared_error, optax.sgd(0.01), batch_size=1, epochs=1)
        algorithm = fe.federated(insert(client), optax.sgd(0.5), fe.aggregation.uniform_mean())
        return algorithm._replace(accountant=mechanism.accountant)

    with pytest.raises(ValueError, match="replace one example of one client, got an audit whose canaries are whole"):
        audited_whole(make)


def test_coins_that_all_fall_alike_leave_no_estimate():
    audit = audited(correct, canaries=2, runs=1)
    assert np.isnan(audit.estimate) and audit.lower_bound.epsilon == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"canaries": 0}, "canaries must be"),
        ({"runs": 0}, "runs must be"),
        ({"rounds": 0}, "rounds must be"),
        ({"norm": 0.0}, "norm must be"),
        ({"delta": 0.0}, "delta must be a number above 0"),
        ({"confidence": 1.0}, "confidence must be"),
        ({"canaries": 1, "runs": 1}, r"canaries \* runs must be an integer of at least 2, got 1"),
        ({"canaries": 1001}, "1001 orthogonal canaries need as many parameters, got 1000"),
        ({"sampler": fe.data.everyone(999)}, "sampler must draw from 0 clients and 1000 canaries, got one of 999"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        audited(correct, **options)
