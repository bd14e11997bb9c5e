import gzip
import importlib
from pathlib import Path

import numpy as np
import pytest

from fedjax_edge.data.shakespeare import (
    SHAKESPEARE_VOCABULARY,
    decode_text,
    encode_text,
    shakespeare,
    shakespeare_roles,
)

source = importlib.import_module("fedjax_edge.data.shakespeare")

BUNDLED = Path(source.__file__).parent / "bundled" / "shakespeare.txt.gz"
TEXT = gzip.decompress(BUNDLED.read_bytes()).decode("ascii")
BLOCKS = [block.strip("\n") for block in TEXT.split("\n\n")]


def client_texts(dataset, client, column):
    return [decode_text(codes) for codes in dataset.client_columns(client)[column]]


def by_hand(role):
    """A role's text, gathered line by line instead of with a regular expression."""
    return "\n".join(block.split("\n", 1)[1] for block in BLOCKS if block.startswith(f"{role}:\n"))


def test_the_vocabulary_is_that_of_the_text():
    assert "".join(sorted(set(TEXT))) == SHAKESPEARE_VOCABULARY
    assert len(SHAKESPEARE_VOCABULARY) == 65


def test_every_heading_with_a_speech_is_a_role_and_no_text_is_lost():
    speeches = source._speeches()
    assert len(speeches) == 299
    spoken = sum(len(speech) for parts in speeches.values() for speech in parts)
    headings = sum(len(block.split("\n")[0]) for block in BLOCKS)
    newlines = TEXT.count("\n") - sum(speech.count("\n") for parts in speeches.values() for speech in parts)
    assert spoken + headings + newlines == len(TEXT)


@pytest.mark.parametrize("role", ["ROMEO", "First Citizen", "GLOUCESTER"])
@pytest.mark.parametrize("window", [80, 33])
def test_windows_tile_the_speeches_of_a_role_in_order(role, window):
    split = shakespeare(window)
    client = shakespeare_roles(window).index(role)
    text = by_hand(role)
    inputs = client_texts(split.train, client, "input") + client_texts(split.test, client, "input")
    targets = client_texts(split.train, client, "target") + client_texts(split.test, client, "target")
    assert len(inputs) == (len(text) - 1) // window
    assert "".join(inputs) == text[: len(inputs) * window]
    assert "".join(targets) == text[1 : len(inputs) * window + 1]


def test_clients_are_the_roles_with_two_windows_in_alphabetical_order():
    roles = shakespeare_roles()
    assert roles == sorted(role for role in source._speeches() if len(by_hand(role)) >= 2 * 80 + 1)
    split = shakespeare()
    assert split.train.num_clients == split.test.num_clients == len(roles) == 232


def test_four_fifths_of_a_role_are_for_training_and_both_parts_have_a_window():
    split = shakespeare()
    train, test = np.diff(split.train.offsets), np.diff(split.test.offsets)
    assert min(train.min(), test.min()) == 1
    np.testing.assert_array_equal(train, np.floor(0.8 * (train + test) + 1e-9))
    assert (train.sum(), test.sum()) == (10_048, 2_621)


def test_columns_are_bytes_of_the_window():
    for dataset in shakespeare(window=17):
        for column in dataset.columns.values():
            assert column.dtype == np.uint8
            assert column.shape == (dataset.num_examples, 17)


def test_the_longest_window_leaves_one_role_and_a_longer_one_is_refused():
    longest = (max(len(by_hand(role)) for role in source._speeches()) - 1) // 2
    assert shakespeare_roles(longest) == ["GLOUCESTER"]
    with pytest.raises(ValueError, match=f"window must be at most {longest} .*, got {longest + 1}"):
        shakespeare(longest + 1)


@pytest.mark.parametrize("window", [0, -1, 8.0])
def test_a_window_must_be_a_positive_integer(window):
    with pytest.raises(ValueError, match=f"window must be an integer of at least 1, got {window}"):
        shakespeare(window)


def test_decoding_inverts_encoding():
    codes = encode_text(TEXT[:5000])
    assert codes.dtype == np.uint8
    assert decode_text(codes) == TEXT[:5000]
    assert encode_text("").shape == (0,)
    np.testing.assert_array_equal(encode_text(SHAKESPEARE_VOCABULARY), np.arange(65))


def test_a_character_outside_the_vocabulary_is_refused():
    with pytest.raises(ValueError, match=r"text must use the characters of SHAKESPEARE_VOCABULARY only, got \['é'\]"):
        encode_text("café")
