from fedjax_edge.core.memory import available_bytes, in_words


def test_the_free_memory_of_this_machine_is_known():
    assert 10**7 < available_bytes() < 10**14


def test_bytes_in_words():
    assert [in_words(n) for n in (7, 1_000, 26_984, 10**9)] == ["7 bytes", "1.0 kB", "27.0 kB", "1.0 GB"]
