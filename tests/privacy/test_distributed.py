import math
from functools import cache

import dp_accounting
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import fedjax_edge as fe
from fedjax_edge.core.protocols import CyclicSampling, FixedSampling, FullParticipation, PoissonSampling, PrivacyError
from fedjax_edge.privacy import discrete_gaussian, skellam
from fedjax_edge.privacy.distributed import _grid, _round

PARAMS = {"a": jnp.zeros(90), "b": jnp.zeros((), jnp.bfloat16), "empty": jnp.zeros((0, 2))}
CLIP, MULTIPLIER, CLIENTS, BITS = 0.5, 1.0, 20, 14
GRID = _grid(PARAMS, MULTIPLIER, CLIENTS, BITS)
MAKERS = {"discrete_gaussian": discrete_gaussian, "skellam": skellam}
MECHANISMS = {name: make(PARAMS, CLIP, MULTIPLIER, CLIENTS, bits=BITS) for name, make in MAKERS.items()}
FALSE_ALARM = 1e-6
each_mechanism = pytest.mark.parametrize("name", MECHANISMS)


ROWS = 40  # sent at once, whatever is used of them: one compilation for each mechanism


@cache
def uplink_of(mechanism):
    return jax.jit(jax.vmap(lambda update, key: mechanism.uplink.apply(update, (), key)[0]))


def sent_by(mechanism, updates, seed=0):
    """What devices send, int32 [clients, numbers]."""
    count = len(jax.tree.leaves(updates)[0])
    padded = jax.tree.map(lambda leaf: jnp.pad(leaf, [(0, ROWS - count)] + [(0, 0)] * (leaf.ndim - 1)), updates)
    return uplink_of(mechanism)(padded, jax.random.split(jax.random.key(seed), ROWS))[:count]


def mean_of(mechanism, updates, seed=0):
    """What the server makes of updates, leaves [clients, ...]."""
    sent = sent_by(mechanism, updates, seed)
    rows = jax.vmap(lambda row: mechanism.aggregator.contribution(row, jnp.float32(1), ()))(sent)
    total = jax.tree.map(lambda leaf: leaf.sum(0, dtype=jnp.int32), rows)
    return mechanism.aggregator.finish(total, (), None)[0]


def updates_of(clients, length=0.3):
    direction = jax.random.normal(jax.random.key(5), (clients, 91))
    direction *= length / jnp.linalg.norm(direction, axis=1, keepdims=True)
    return {
        "a": direction[:, :90],
        "b": direction[:, 90].astype(jnp.bfloat16),
        "empty": jnp.zeros((clients, 0, 2)),
    }


@each_mechanism
def test_the_mean_is_the_mean_with_the_noise_that_is_stated(name):
    errors = []
    for seed in range(20):
        updates = updates_of(CLIENTS)
        mean = mean_of(MECHANISMS[name], updates, seed)
        assert jax.tree.map(jnp.shape, mean) == {"a": (90,), "b": (), "empty": (0, 2)}
        errors.append(np.asarray(mean["a"] - updates["a"].mean(0), np.float64) * CLIENTS)
    scale = MULTIPLIER * CLIP
    rounding = CLIP / GRID.norm * math.sqrt(CLIENTS) / 2  # at most, beside the noise
    low, high = np.sqrt(stats.chi2.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], df=1800) / 1800)
    found = np.sqrt(np.mean(np.square(errors)))
    assert low * scale <= found <= high * math.hypot(scale, rounding)
    assert not low * 1.5 * scale <= found and not found <= high * scale / 1.5
    assert np.abs(np.mean(errors)) < 5 * scale / math.sqrt(1800)


@each_mechanism
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_device_whose_update_is_not_finite_still_sends_its_share_of_noise(name, bad):
    broken = jax.tree.map(lambda leaf: jnp.full_like(leaf, bad), updates_of(ROWS))
    sent = np.asarray(sent_by(MECHANISMS[name], broken))
    share = ((sent + 2 ** (BITS - 1)) % 2**BITS - 2 ** (BITS - 1)) / GRID.deviation
    low, high = stats.chi2.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], df=share.size)
    assert low <= np.sum(share**2) <= high
    assert np.abs(np.corrcoef(share[:5]) - np.eye(5)).max() < 6 / math.sqrt(128)  # devices draw on their own


@pytest.mark.parametrize("length", [0.1, 0.5, 3.0, 1e18])
@pytest.mark.parametrize("shape", ["spike", "flat", "random"])
def test_no_rounded_update_is_longer_than_the_sensitivity(length, shape, monkeypatch):
    silent = discrete_gaussian(PARAMS, CLIP, MULTIPLIER, CLIENTS, bits=BITS)
    vector = {
        "spike": np.eye(1, 90)[0],
        "flat": np.ones(90) / 90**0.5,
        "random": np.random.default_rng(0).normal(size=90),
    }
    vector = vector[shape] / np.linalg.norm(vector[shape]) * length
    update = {"a": jnp.asarray(vector, jnp.float32), "b": jnp.bfloat16(0), "empty": jnp.zeros((0, 2))}
    monkeypatch.setattr("fedjax_edge.privacy.integer_noise.IntegerNoise.draw", lambda *args: jnp.zeros(128, jnp.int32))
    send = jax.jit(jax.vmap(lambda key: silent.uplink.apply(update, (), key)[0]))
    sent = np.asarray(send(jax.random.split(jax.random.key(1), 200)), np.int64)
    rounded = (sent + 2 ** (BITS - 1)) % 2**BITS - 2 ** (BITS - 1)
    norms = np.sqrt(np.sum(rounded**2, axis=1))
    assert norms.max() <= GRID.rounded_norm
    assert norms.min() > 0.9 * GRID.norm * min(length / CLIP, 1)  # none was given up


def test_rounding_is_unbiased_and_refuses_what_is_too_long():
    vector = jnp.array([0.25, -0.75, 3.0, 100.5])
    keys = jax.random.split(jax.random.key(0), 4000)
    free = np.asarray(jax.vmap(lambda key: _round(vector, 1e9, key))(keys))
    assert set(np.unique(free[:, 1])) == {-1, 0} and (free[:, 2] == 3).all()
    np.testing.assert_allclose(free.mean(0), vector, atol=5 * 0.5 / math.sqrt(4000))
    bound = math.sqrt(9 + 100**2 + 1.5)  # not all may round away from zero
    tight = np.asarray(jax.vmap(lambda key: _round(vector, bound, key))(keys))
    assert (tight**2).sum(1).max() <= bound**2 and (tight[:, 3] == 100).all()
    assert (np.asarray(_round(vector, 1.0, keys[0])) == 0).all()  # nothing fits


@each_mechanism
def test_sums_wrap_around_the_modulus_and_come_back(name):
    mechanism = MAKERS[name](jnp.zeros(4), 1.0, 0.5, 3, bits=16)
    for sign in (1, -1):  # so that some sum is below zero
        updates = sign * jnp.array([[-0.9, 0.1, 0.0, 0.2]] * 3)
        np.testing.assert_allclose(mean_of(mechanism, updates), updates[0], atol=6 * 0.5 / 3)


@each_mechanism
def test_fewer_clients_release_nothing_and_more_divide_by_the_number_fixed(name):
    nothing = mean_of(MECHANISMS[name], updates_of(CLIENTS - 1))
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(nothing))
    updates = jax.tree.map(lambda leaf: jnp.full_like(leaf, 0.02), updates_of(40))
    more = mean_of(MECHANISMS[name], updates)
    assert float(more["a"].mean()) == pytest.approx(
        0.02 * 40 / CLIENTS, abs=5 * 2**0.5 * CLIP / CLIENTS / math.sqrt(90)
    )


def exact_divergence(law, shift, order):
    """The Rényi divergence of a law on integers from itself shifted, by enumeration in float64."""
    p, q = law[shift:], law[: len(law) - shift]
    is_known = (p > 1e-290) & (q > 1e-290)
    return np.log(np.sum(np.exp(order * np.log(p[is_known]) - (order - 1) * np.log(q[is_known])))) / (order - 1)


@pytest.mark.parametrize(("clients", "deviation"), [(1, 1.0), (3, 0.6), (3, 1.0), (8, 2.0)])
def test_the_discrete_gaussians_bound_holds_by_enumeration(clients, deviation):
    weights = np.exp(-(np.arange(-60, 61) ** 2) / (2 * deviation**2))
    law = weights / weights.sum()
    total = law
    for _ in range(clients - 1):
        total = np.convolve(total, law)
    gap = 10 * sum(math.exp(-2 * (math.pi * deviation) ** 2 * k / (k + 1)) for k in range(1, clients))
    for order in (2, 3, 5, 8):
        for shift in (1, 2):
            bound = order / 2 * shift**2 / (clients * deviation**2) + gap * (1 + 0.5 / (order - 1))
            exact = exact_divergence(total, shift, order)
            assert exact <= bound * (1 + 1e-9)
            assert exact >= 0.8 * order / 2 * shift**2 / (clients * deviation**2)


def skellam_claim_by_hand(grid, clients, rounds, delta):
    """Corollary 3.6 once more, for a vector of `size` numbers."""
    mu = clients * grid.deviation**2
    l1 = grid.rounded_norm * min(grid.size**0.5, grid.rounded_norm)
    orders = list(range(2, 300))
    costs = []
    for a in orders:
        first = ((2 * a - 1) * grid.rounded_norm**2 + 6 * l1) / (4 * mu**2)
        costs.append(rounds * (a * grid.rounded_norm**2 / (2 * mu) + min(first, 3 * l1 / (2 * mu))))
    return dp_accounting.rdp.compute_epsilon(orders, costs, delta)[0]


def test_skellams_bound_holds_by_enumeration_and_is_what_is_claimed():
    for variance in (2.0, 10.0):
        law = stats.skellam.pmf(np.arange(-120, 121), variance / 2, variance / 2)
        for order in (2, 3, 5):
            for shift in (1, 2):
                excess = ((2 * order - 1) * shift**2 + 6 * shift) / (4 * variance**2)
                bound = order * shift**2 / (2 * variance) + min(excess, 3 * shift / (2 * variance))
                assert exact_divergence(law, shift, order) <= bound
    for bits in (6, BITS):
        accountant = skellam(PARAMS, CLIP, MULTIPLIER, CLIENTS, bits=bits).accountant
        by_hand = skellam_claim_by_hand(_grid(PARAMS, MULTIPLIER, CLIENTS, bits), CLIENTS, 5, 1e-5)
        assert accountant(FullParticipation(CLIENTS), 5, 1e-5).epsilon == pytest.approx(by_hand, rel=2e-3)


@each_mechanism
def test_claims_approach_the_gaussians_and_never_fall_below(name):
    epsilons = []
    for bits in (9, 12, 16):
        accountant = MAKERS[name](PARAMS, CLIP, MULTIPLIER, CLIENTS, bits=bits).accountant
        epsilons.append(accountant(FullParticipation(CLIENTS), 5, 1e-5).epsilon)
    rdp = dp_accounting.rdp.RdpAccountant().compose(dp_accounting.GaussianDpEvent(MULTIPLIER), 5).get_epsilon(1e-5)
    assert epsilons[0] > epsilons[1] > epsilons[2] > dp_accounting.get_epsilon_gaussian(MULTIPLIER / 5**0.5, 1e-5)
    assert epsilons[2] == pytest.approx(rdp, rel=0.01)


@each_mechanism
def test_the_claim_says_whose_noise_it_counts_on(name):
    accountant = MECHANISMS[name].accountant
    claim = accountant(CyclicSampling(80, CLIENTS), 8, 1e-5)
    assert claim.relation == "zero out one client (its contributions become zero)"
    assert "fewer than 20 clients is not released" in claim.sampling and "at most 2 rounds" in claim.accountant
    assert claim.epsilon == accountant(FullParticipation(CLIENTS), 2, 1e-5).epsilon
    for sampling in (PoissonSampling(80, 0.5, 0.0), FixedSampling(80, CLIENTS)):
        assert accountant(sampling, 2, 1e-5).epsilon == claim.epsilon
    assert accountant(FullParticipation(CLIENTS), 0, 1e-5).epsilon == 0
    with pytest.raises(PrivacyError, match="in how many rounds a client takes part"):
        accountant(None, 1, 1e-5)
    with pytest.raises(PrivacyError, match="no finite epsilon"):
        accountant(FullParticipation(CLIENTS), 1, 1e-22)


def test_too_coarse_noise_costs_what_the_sum_is_not():
    grid = _grid(PARAMS, MULTIPLIER, CLIENTS, 6)
    gap = 10 * sum(math.exp(-2 * (math.pi * grid.deviation) ** 2 * k / (k + 1)) for k in range(1, CLIENTS))
    orders = np.arange(2, 300)

    def by_hand(per_number):
        costs = orders / 2 * grid.rounded_norm**2 / (CLIENTS * grid.deviation**2) + grid.size * per_number
        return dp_accounting.rdp.compute_epsilon(orders, costs, 1e-5)[0]

    coarse = discrete_gaussian(PARAMS, CLIP, MULTIPLIER, CLIENTS, bits=6).accountant
    epsilon = coarse(FullParticipation(CLIENTS), 1, 1e-5).epsilon
    assert by_hand(gap) < epsilon < by_hand(1.5 * gap)  # Proposition 14's first term, and a little more
    assert epsilon > by_hand(0) + 0.5
    with pytest.raises(ValueError, match="steps, where a sum of discrete Gaussians is none"):
        discrete_gaussian(PARAMS, CLIP, 0.1, CLIENTS, bits=6)


@each_mechanism
def test_a_run_sums_integers_and_counts_their_bits(name):
    population = fe.data.from_client_arrays([{"x": np.full((1, 3), k, np.float32)} for k in range(4)])
    mechanism = MAKERS[name](jnp.zeros(3), 1.0, 2.0, 4, bits=12)
    algorithm = fe.algorithms.fedavg(
        lambda params, batch, key: batch["x"] @ params, optax.sgd(0.1), batch_size=1, epochs=1,
        uplink=mechanism.uplink, aggregator=mechanism.aggregator,
    )  # fmt: skip
    given = {"sampler": fe.data.everyone(4), "rounds": 2, "key": jax.random.key(0), "delta": 1e-5, "progress": False}
    result = fe.run(algorithm, jnp.zeros(3), population, **given)
    assert result.history["bits_up"].tolist() == [4 * 4 * 12] * 2
    assert result.claim.epsilon == result.history.last("epsilon") > 0
    assert np.isfinite(np.asarray(result.params)).all() and result.history["rejected"].sum() == 0
    bypassed = fe.algorithms.fedavg(
        lambda params, batch, key: batch["x"] @ params, optax.sgd(0.1), batch_size=1, epochs=1,
        uplink=fe.chain()._replace(accountant=mechanism.accountant), aggregator=mechanism.aggregator,
    )  # fmt: skip
    with pytest.raises(TypeError, match="sums the integers that its uplink sends"):
        fe.run(bypassed, jnp.zeros(3), population, **given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip_norm": 0.0}, "clip_norm must be"),
        ({"noise_multiplier": 0.0}, "noise_multiplier must be"),
        ({"clients": 0}, "clients must be"),
        ({"bits": 1}, "bits must be an integer from 2 to 30"),
        ({"bits": 4}, "too few to sum the rounding of 20 clients"),
        ({"bits": 30}, "take fewer bits"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_values_out_of_range_are_refused(change, message):
    given = {"params": PARAMS, "clip_norm": 1.0, "noise_multiplier": 1.0, "clients": 20, "bits": 16}
    with pytest.raises(ValueError, match=message):
        skellam(**{**given, **change})


def test_other_forms_and_traced_multipliers_are_refused():
    with pytest.raises(ValueError, match="made for updates of the form"):
        MECHANISMS["skellam"].uplink.init({"a": jnp.zeros(3)})
    with pytest.raises(TypeError, match="make it static"):
        jax.jit(lambda z: skellam(PARAMS, 1.0, z, 20, bits=16).uplink.init(PARAMS) or z)(1.0)
