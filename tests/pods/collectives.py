"""The collectives of the compiled training step on a mesh, as JSON: {"all-gather": [shapes]}."""

import json
import re
import sys
from functools import partial

import curves
import jax
from jax.sharding import NamedSharding, PartitionSpec

import jaxgen
from jaxgen.mesh import device_mesh, place

OPERATION = re.compile(r"= \w+\[([\d,]*)\]\S* (all-gather|all-reduce|reduce-scatter)(?:-start)?\(")


def main(words: str) -> None:
    settings = curves.MeshSettings(**curves.parse(words))
    mesh = device_mesh.make_mesh(settings, jax.devices()[: curves._devices(settings)])
    shapes, axes = jax.eval_shape(curves.fresh), curves.api.axes(curves.CONFIG)
    shardings = place.state_shardings(mesh, shapes, axes)
    state = jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, shardings
    )
    batch = place.place_batch(mesh, next(iter(curves.batches())), curves.B)
    step = partial(
        jaxgen.train_step,
        config=curves.CONFIG,
        optimizer=curves.OPTIMIZER,
        loss=jaxgen.causal_loss,
    )
    whole = NamedSharding(mesh, PartitionSpec())
    with jax.set_mesh(mesh):
        made = jax.jit(step, out_shardings=(shardings, whole)).lower(state, batch).compile()
    found: dict[str, list] = {}
    for shape, kind in OPERATION.findall(made.as_text()):
        found.setdefault(kind, []).append([int(n) for n in shape.split(",") if n])
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
