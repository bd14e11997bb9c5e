import jax
import pytest

from fedjax_edge.core import memory
from fedjax_edge.core.memory import available_bytes, copies_in_one_memory, in_words


def test_the_free_memory_of_this_machine_is_known():
    assert 10**7 < available_bytes() < 10**14


@pytest.mark.parametrize(("most", "free"), [("max", None), (8_000_000, 5_500_000)])
def test_a_container_has_no_more_than_its_limit(tmp_path, monkeypatch, most, free):
    (tmp_path / "memory.max").write_text(f"{most}\n")
    (tmp_path / "memory.current").write_text("3000000\n")
    (tmp_path / "memory.stat").write_text("anon 2400000\ninactive_file 500000\nactive_file 100000\n")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    if free is None:
        assert available_bytes() > 10**7
    else:
        assert available_bytes() == free


def test_cpu_devices_share_one_memory_and_accelerators_do_not(monkeypatch):
    assert [copies_in_one_memory(devices) for devices in (1, 3, 100)] == [1, 3, 8]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert copies_in_one_memory(4) == 1


def test_bytes_in_words():
    assert [in_words(n) for n in (7, 1_000, 26_984, 10**9)] == ["7 bytes", "1.0 kB", "27.0 kB", "1.0 GB"]
