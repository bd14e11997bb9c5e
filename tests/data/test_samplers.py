from collections import Counter
from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from scipy import stats

from fedjax_edge.core.protocols import CyclicSampling, FixedSampling, FullParticipation, PoissonSampling
from fedjax_edge.data import samplers
from fedjax_edge.data.samplers import cyclic, everyone, poisson, uniform

ROUND = jnp.int32(0)
DRAWS = 20_000
# Seeds are fixed. Were they not, each test of statistics would raise a false alarm with this probability.
FALSE_ALARM = 1e-4


def cohorts(sampler, draws=DRAWS):
    """Returns ids and presence of many independent rounds, [draws, width]."""
    sample = jax.jit(jax.vmap(sampler.sample, in_axes=(0, None)))
    return jax.tree.map(np.asarray, sample(jax.random.split(jax.random.key(1), draws), ROUND))


def sizes(sampler, draws):
    size = jax.jit(jax.vmap(lambda key: sampler.sample(key, ROUND).present.sum(dtype=jnp.int32)))
    return np.asarray(size(jax.random.split(jax.random.key(2), draws)))


def largest_array(function, *arguments):
    """Returns the number of elements of the largest array in the traced function, constants included."""

    def of(jaxpr):
        variables = [*jaxpr.invars, *jaxpr.constvars, *(out for equation in jaxpr.eqns for out in equation.outvars)]
        inner = [of(sub) for equation in jaxpr.eqns for sub in jaxprs_in_params(equation.params)]
        return max([variable.aval.size for variable in variables] + inner)

    return of(jax.make_jaxpr(function)(*arguments).jaxpr)


@pytest.mark.parametrize("num_clients", [1, 2, 9, 1_000_000, 2**31 - 1])
def test_uniform_draws_distinct_clients_of_any_population(num_clients):
    sampler = uniform(num_clients, min(num_clients, 8))
    ids, present = cohorts(sampler, draws=200)
    assert ids.shape == present.shape == (200, sampler.width) and ids.dtype == np.int32 and present.all()
    assert {len(set(cohort)) for cohort in ids.tolist()} == {sampler.width} == {min(num_clients, 8)}
    assert ids.min() >= 0 and ids.max() < num_clients


def test_uniform_over_the_whole_population_takes_everyone_in_random_order():
    ids, _ = cohorts(uniform(20, 20), draws=100)
    assert (np.sort(ids, axis=1) == np.arange(20)).all()
    assert len(set(map(tuple, ids.tolist()))) == 100


def test_uniform_takes_each_client_equally_often():
    ids, _ = cohorts(uniform(50, 7))
    counts, p = np.bincount(ids.ravel(), minlength=50), 7 / 50
    # Without replacement the counts are negatively correlated, by -1 / (N - 1).
    statistic = ((counts - DRAWS * p) ** 2).sum() / (DRAWS * p * (1 - p) * 50 / 49)
    assert FALSE_ALARM / 2 < stats.chi2.sf(statistic, 49) < 1 - FALSE_ALARM / 2


def test_uniform_takes_each_ordered_cohort_equally_often():
    ids, _ = cohorts(uniform(6, 3))
    seen = Counter(map(tuple, ids.tolist()))
    counts = [seen[cohort] for cohort in permutations(range(6), 3)]
    assert sum(counts) == DRAWS
    assert FALSE_ALARM / 2 < stats.chisquare(counts).pvalue < 1 - FALSE_ALARM / 2


@pytest.mark.parametrize(("num_clients", "q"), [(20, 0.3), (20, 0.95), (3, 0.01)])
def test_the_size_of_a_poisson_cohort_is_binomial(num_clients, q):
    counts = np.bincount(sizes(poisson(num_clients, q), DRAWS), minlength=num_clients + 1)
    expected = DRAWS * stats.binom.pmf(np.arange(num_clients + 1), num_clients, q)
    common = expected >= 5
    observed = np.append(counts[common], counts[~common].sum())
    expected = np.append(expected[common], expected[~common].sum())
    assert FALSE_ALARM / 2 < stats.chisquare(observed, expected).pvalue < 1 - FALSE_ALARM / 2


@pytest.mark.parametrize(("num_clients", "q"), [(7, 1.0), (300, 0.5), (100_000, 0.01), (1_000_000, 1e-3)])
def test_the_size_of_a_poisson_cohort_is_that_of_a_binomial_to_1e_12(num_clients, q):
    width = poisson(num_clients, q).width
    high, low = samplers._binomial_thresholds(num_clients, q, width).astype(float)
    drawn = np.diff(high / 2**32 + low / 2**64)
    assert abs(drawn - stats.binom.pmf(np.arange(1, width), num_clients, q)).sum() / 2 < 1e-12


def test_the_size_of_a_poisson_cohort_out_of_a_million_has_the_moments_of_the_binomial():
    drawn = sizes(poisson(1_000_000, 1e-3), DRAWS)
    mean, variance = 1000, 1000 * (1 - 1e-3)
    # Five standard errors: a false alarm has a probability below 1e-6.
    assert abs(drawn.mean() - mean) < 5 * np.sqrt(variance / DRAWS)
    assert abs(drawn.var() / variance - 1) < 5 * np.sqrt(2 / DRAWS)


def test_poisson_takes_each_client_independently_with_its_probability():
    ids, present = cohorts(poisson(20, 0.3))
    assert {len(set(cohort)) for cohort in ids.tolist()} == {ids.shape[1]}
    assert ids.min() >= 0 and ids.max() < 20
    taken = np.zeros((DRAWS, 20))
    np.put_along_axis(taken, ids, present, axis=1)
    z = (taken.sum(0) - DRAWS * 0.3) / np.sqrt(DRAWS * 0.3 * 0.7)
    assert FALSE_ALARM / 2 < stats.chi2.sf((z**2).sum(), 20) < 1 - FALSE_ALARM / 2
    correlation = np.corrcoef(taken.T)[np.triu_indices(20, 1)] * np.sqrt(DRAWS)
    assert FALSE_ALARM / 2 < stats.chi2.sf((correlation**2).sum(), 190) < 1 - FALSE_ALARM / 2


def test_who_is_present_comes_first_and_the_rest_is_padding():
    _, present = cohorts(poisson(20, 0.3), draws=50)
    assert (np.diff(present.astype(int)) <= 0).all() and 0 < present.mean() < 1


@pytest.mark.parametrize(("num_clients", "q", "width"), [(300, 1 / 3, 171), (1_000_000, 1e-3, 1245), (20, 0.9, 20)])
def test_the_width_of_a_poisson_cohort_is_exceeded_with_negligible_probability(num_clients, q, width):
    sampler = poisson(num_clients, q)
    assert sampler.width == width
    assert stats.binom.sf(width, num_clients, q) <= sampler.sampling.overflow_probability <= 1e-12


@pytest.mark.parametrize("sampler", [poisson(20, 1.0), everyone(20), cyclic(20, 20)])
def test_a_certain_client_is_always_there(sampler):
    ids, present = cohorts(sampler, draws=100)
    assert present.all() and (np.sort(ids, axis=1) == np.arange(20)).all()


def test_everyone_comes_in_order():
    ids, present = everyone(4).sample(jax.random.key(0), ROUND)
    assert ids.tolist() == [0, 1, 2, 3] and ids.dtype == jnp.int32 and present.all()


def test_cyclic_takes_clients_in_turn_around_and_around():
    sample = jax.jit(cyclic(5, 2).sample)
    rounds = [sample(jax.random.key(7 * number), jnp.int32(number)) for number in range(5)]
    assert [cohort.ids.tolist() for cohort in rounds] == [[0, 1], [2, 3], [4, 0], [1, 2], [3, 4]]
    assert all(cohort.present.all() and cohort.ids.dtype == jnp.int32 for cohort in rounds)
    assert cyclic(3).sample(None, jnp.int32(10)).ids.tolist() == [1]
    assert cyclic(3).sample(None, jnp.int32(2**31 - 1)).ids.tolist() == [(2**31 - 1) % 3]


@pytest.mark.parametrize("sampler", [uniform(50, 7), poisson(50, 0.3)])
def test_a_cohort_is_a_function_of_its_key(sampler):
    draw = jax.jit(sampler.sample)
    one, again, other = draw(jax.random.key(3), ROUND), draw(jax.random.key(3), ROUND), draw(jax.random.key(4), ROUND)
    np.testing.assert_array_equal(one.ids, again.ids)
    np.testing.assert_array_equal(one.present, again.present)
    assert not np.array_equal(one.ids, other.ids)


@pytest.mark.parametrize("sampler", [uniform(1_000_000, 1000), poisson(1_000_000, 1e-3), cyclic(1_000_000, 1000)])
def test_nothing_of_the_size_of_the_population_is_ever_held(sampler):
    assert largest_array(sampler.sample, jax.random.key(0), ROUND) <= 4 * sampler.width


def test_the_search_for_large_arrays_finds_those_of_a_full_shuffle():
    def shuffle(key):
        return jax.random.choice(key, 1_000_000, (1000,), replace=False)

    assert largest_array(shuffle, jax.random.key(0)) >= 1_000_000


def test_a_sampler_says_what_an_accountant_may_assume():
    assert poisson(300, 1 / 3).sampling == PoissonSampling(300, 1 / 3, 1e-12)
    assert poisson(20, 0.9).sampling == PoissonSampling(20, 0.9, 0.0)
    assert uniform(300, 10).sampling == FixedSampling(300, 10)
    assert everyone(300).sampling == FullParticipation(300)
    assert cyclic(300, 10).sampling == CyclicSampling(300, 10)
    samplers = (poisson(300, 1 / 3), uniform(300, 10), everyone(300), cyclic(300, 10))
    assert [sampler.expected_size for sampler in samplers] == pytest.approx([100, 10, 300, 10])
    assert [sampler.num_clients for sampler in samplers] == [300] * 4
    assert [sampler.width for sampler in samplers] == [171, 10, 300, 10]


def test_equal_arguments_give_the_same_object():
    assert poisson(300, 1 / 3) is poisson(300, 1 / 3) is not poisson(300, 0.3)
    assert uniform(300, 10) is uniform(300, 10) is not uniform(300, 11)
    assert everyone(300) is everyone(300)
    assert cyclic(300) is cyclic(300) is not cyclic(300, 2)


@pytest.mark.parametrize("sampler", [uniform, cyclic])
@pytest.mark.parametrize("cohort_size", [0, 11, 2.5])
def test_impossible_cohorts_are_refused(sampler, cohort_size):
    with pytest.raises(ValueError, match=f"cohort_size must be an integer from 1 to 10, got {cohort_size}"):
        sampler(10, cohort_size)


@pytest.mark.parametrize("probability", [0, -0.5, 1.5, np.nan, "half"])
def test_impossible_probabilities_are_refused(probability):
    with pytest.raises(ValueError, match=rf"probability must be a number in \(0, 1\], got {probability!r}"):
        poisson(10, probability)


@pytest.mark.parametrize("build", [everyone, cyclic, lambda n: uniform(n, 1), lambda n: poisson(n, 0.5)])
@pytest.mark.parametrize("num_clients", [0, -3, 2.5])
def test_impossible_populations_are_refused(build, num_clients):
    with pytest.raises(ValueError, match=f"num_clients must be an integer of at least 1, got {num_clients}"):
        build(num_clients)
