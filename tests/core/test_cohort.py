"""What samplers draw, and what they say of themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_edge as fe
from fedjax_edge.core import Cohort, PrivacyError, Sampler
from fedjax_edge.core.cohort import check_sampler, draw
from fedjax_edge.core.keys import RunStream, derive
from fedjax_edge.core.protocols import CyclicSampling, FixedSampling, FullParticipation, PoissonSampling


def sampler(ids, present=None, width=None, sampling=None, num_clients=6):
    present = jnp.ones(len(ids), bool) if present is None else present
    width = len(ids) if width is None else width
    return Sampler(lambda key, number: Cohort(ids, present), width, num_clients, len(ids), sampling)


def test_a_cohort_is_drawn_from_the_runs_own_stream_of_keys(key):
    uniform = fe.data.uniform(1000, 5)
    expected = uniform.sample(derive(key, RunStream.COHORT, 3), 3)
    assert draw(uniform, key, jnp.int32(3)).ids.tolist() == expected.ids.tolist()


def test_cohorts_of_numpy_are_taken(key):
    ids, present = draw(sampler(np.array([4, 5]), np.array([True, False])), key, jnp.int32(0))
    assert ids.dtype == jnp.int32 and ids.tolist() == [4, 5] and present.tolist() == [True, False]


@pytest.mark.parametrize(
    "bad",
    [
        sampler(np.arange(3), width=2),
        sampler(np.arange(3), np.ones(2, bool)),
        sampler(np.arange(3).astype(np.float32)),
        sampler(np.arange(3), np.ones(3, np.int32)),
        sampler(np.arange(4).reshape(2, 2), np.ones((2, 2), bool)),
    ],
)
def test_cohorts_of_another_form_are_refused(bad, key):
    with pytest.raises(ValueError, match=r"a sampler of width [234] must draw ids, int32 \[width\], and who is"):
        jax.jit(lambda: draw(bad, key, jnp.int32(0)))()


def test_samplers_describe_themselves_as_what_they_are():
    for own in (fe.data.poisson(6, 0.5), fe.data.uniform(6, 2), fe.data.everyone(6), fe.data.cyclic(6, 2)):
        check_sampler(own, 6)
    with pytest.raises(ValueError, match="the sampler draws from 6 clients; there are 7"):
        check_sampler(fe.data.uniform(6, 2), 7)
    with pytest.raises(ValueError, match=r"sampler\.width must be an integer of at least 1, got 0"):
        check_sampler(sampler(np.arange(0)), 6)
    for false in (
        FixedSampling(600, 2), FixedSampling(6, 3), FixedSampling(6, 1), CyclicSampling(6, 3), CyclicSampling(6, 1),
        PoissonSampling(7, 0.5, 0.0), FullParticipation(5),
    ):  # fmt: skip
        with pytest.raises(PrivacyError, match="the sampler draws at most 2 of 6 clients, and describes itself as"):
            check_sampler(sampler(np.arange(2), sampling=false), 6)


def test_a_sampler_that_cannot_be_hashed_is_named():
    class Draw:
        __hash__ = None

        def __call__(self, key, number):
            return Cohort(jnp.arange(6), jnp.ones(6, bool))

    everyone = fe.data.everyone(6)
    with pytest.raises(TypeError, match=r"sampler\.sample must be hashable, .* got .*Draw"):
        check_sampler(everyone._replace(sample=Draw()), 6)
    with pytest.raises(TypeError, match=r"sampler\.expected_size must be hashable, .* got Array\(6"):
        check_sampler(everyone._replace(expected_size=jnp.float32(6)), 6)
