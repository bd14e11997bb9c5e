import jax

from fedjax_edge.core.backend import is_cpu, only_shapes


def test_only_shapes_are_the_same_everywhere(monkeypatch):
    assert is_cpu()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert not is_cpu()
    with only_shapes():
        assert is_cpu()
    assert not is_cpu()
