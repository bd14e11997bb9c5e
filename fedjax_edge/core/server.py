"""An optax optimizer as the server's update."""

import optax

from fedjax_edge.core import checks
from fedjax_edge.core.protocols import PyTree, ServerUpdate
from fedjax_edge.core.trees import cast_floats_like


def as_server_update(server: ServerUpdate | optax.GradientTransformation) -> ServerUpdate:
    """Returns an optax optimizer as the `ServerUpdate` that descends along the negated aggregate.

    With `optax.sgd(1.0)` the server adds the aggregate to its parameters. Source: Reddi et al., "Adaptive Federated
    Optimization", ICLR 2021 (arXiv:2003.00295), Algorithm 1.

    Raises:
      TypeError: for anything that is neither.
    """
    if isinstance(server, ServerUpdate):
        return server
    if not isinstance(server, optax.GradientTransformation):
        raise TypeError(f"server must be a ServerUpdate or an optax optimizer, got {server!r}")

    def init(params: PyTree) -> tuple[PyTree, optax.OptState]:
        return params, server.init(params)

    def update(state: tuple[PyTree, optax.OptState], aggregate: PyTree) -> tuple[PyTree, optax.OptState]:
        params, optimizer_state = state
        checks.alike("the aggregate", aggregate, params, dtypes=False)
        gradient = optax.tree.cast_like(optax.tree.scale(-1.0, aggregate), params)
        step, new_state = server.update(gradient, optimizer_state, params)
        return optax.apply_updates(params, step), cast_floats_like(new_state, optimizer_state)

    def params(state: tuple[PyTree, optax.OptState]) -> PyTree:
        return state[0]

    return ServerUpdate(init, broadcast=params, update=update, params=params)
