from pathlib import Path

import pytest

from fedjax_edge.cli.config import RunConfig


def test_defaults_depend_on_the_data():
    mnist, text = RunConfig().resolved(), RunConfig(dataset="shakespeare").resolved()
    assert (mnist.partition, mnist.model, mnist.clients) == ("dirichlet", "small-cnn", 300)
    assert (text.partition, text.model, text.clients) == ("natural", "gru", None)


def test_the_servers_rate_follows_the_clip():
    assert RunConfig(clip_norm=0.1).resolved().server_learning_rate == 8
    assert RunConfig(clip_norm=None, noise_multiplier=None).resolved().server_learning_rate == 1
    assert RunConfig(server_learning_rate=3.0).resolved().server_learning_rate == 3


def test_options_survive_json():
    config = RunConfig(out=Path("somewhere"), rounds=3, bits=None)
    assert RunConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(clip_norm=None), "noise without clipping is not privacy"),
        (dict(clip_norm=None, noise_multiplier=None, target_epsilon=3.0), "noise without clipping is not privacy"),
        (dict(server_learning_rate=0.0), "server_learning_rate must be a finite number above 0, got 0.0"),
        (dict(client_gradient_clip=-1.0), "client_gradient_clip must be a finite number above 0, got -1.0"),
        (dict(delta=5.0), "delta must be a number above 0 and below 1, got 5.0"),
        (dict(delta=float("nan")), "delta must be a number above 0 and below 1, got nan"),
        (dict(partition="shards", skew=float("inf")), "skew must be a finite number of at least 0, got inf"),
        (dict(client_momentum=-0.1), "client_momentum must be a finite number of at least 0, got -0.1"),
        (dict(partition="iid", skew=3.0), "skew=3.0 means nothing for partition=iid"),
        (dict(data_dir=Path("mnist")), "data_dir=mnist means nothing for dataset=mnist-sample, which is bundled"),
        (dict(sampling="all", cohort=5), "cohort=5 means nothing for sampling=all"),
        (dict(client_optimizer="adam", client_momentum=0.9), "client_momentum is SGD's, not adam's"),
        (dict(server_optimizer="yogi", server_momentum=0.9), "server_momentum is SGD's, not yogi's"),
        (dict(clip_norm=-1.0), "clip_norm must be a finite number above 0, got -1.0"),
        (dict(seed=-1), "seed must be an integer from 0"),
        (dict(dataset="shakespeare", clients=5), "the data say how many there are"),
        (dict(dataset="shakespeare", model="cnn"), "model=cnn does not go with dataset=shakespeare"),
        (dict(partition="natural"), "partition=natural does not go with dataset=mnist-sample"),
    ],
)
def test_what_does_not_go_together_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RunConfig(**options).resolved()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(server_optimizer="Adam"), "server_optimizer must be 'sgd' or 'adam' or 'yogi' or 'adagrad', got 'Adam'"),
        (dict(model="small_cnn"), "model must be 'small-cnn' or .* or None, got 'small_cnn'"),
        (dict(accounted_only="no"), "accounted_only must be bool, got 'no'"),
        (dict(bits=8.5), r"bits must be int or None, got 8\.5"),
        (dict(clip_norm="0.1"), r"clip_norm must be float or None, got '0\.1'"),
        (dict(rounds=True), "rounds must be int, got True"),
    ],
)
def test_values_of_a_file_must_be_of_their_kind(options, message):
    with pytest.raises(ValueError, match=message):
        RunConfig.from_dict(options)


def test_whole_numbers_may_stand_for_floats():
    assert RunConfig.from_dict({"clip_norm": 1, "skew": None}).clip_norm == 1


def test_unknown_options_are_named():
    with pytest.raises(ValueError, match=r"unknown options \['round'\]"):
        RunConfig.from_dict({"round": 3})
