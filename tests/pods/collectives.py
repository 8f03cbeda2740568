"""The collectives of the compiled training step on a mesh, as JSON.

{"shapes": {"all-gather": [shapes]}, "sent": bytes of a step} for each number of chunks of logits.
"""

import json
import re
import sys
from functools import partial

import curves
import jax
from jax.sharding import NamedSharding, PartitionSpec

import jaxgen
from jaxgen.mesh import device_mesh, place
from jaxgen.plan import hlo
from jaxgen.profile import program

OPERATION = re.compile(r"= \w+\[([\d,]*)\]\S* (all-gather|all-reduce|reduce-scatter)(?:-start)?\(")


def main(words: str, chunks: list[int]) -> None:
    settings = curves.MeshSettings(**curves.parse(words))
    mesh = device_mesh.make_mesh(settings, jax.devices()[: curves._devices(settings)])
    abstract, axes = jax.eval_shape(curves.fresh), curves.api.axes(curves.CONFIG)
    shardings = place.state_shardings(mesh, abstract, axes)
    state = jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), abstract, shardings
    )
    batch = place.place_batch(mesh, next(iter(curves.batches())), curves.B)
    whole = NamedSharding(mesh, PartitionSpec())
    steps = []
    for number in chunks:
        step = partial(
            jaxgen.train_step,
            config=curves.CONFIG,
            optimizer=curves.OPTIMIZER,
            loss=partial(jaxgen.causal_loss, chunk=curves.CONFIG.context // number),
        )
        with jax.set_mesh(mesh):
            made = jax.jit(step, out_shardings=(shardings, whole)).lower(state, batch).compile()
        shapes: dict[str, list] = {}
        for shape, kind in OPERATION.findall(made.as_text()):
            shapes.setdefault(kind, []).append([int(n) for n in shape.split(",") if n])
        sent = hlo.traffic(program.parse(made.as_text()))
        steps.append({"shapes": shapes, "sent": sum(sent.values())})
    print(json.dumps(steps))


if __name__ == "__main__":
    main(sys.argv[1], [int(word) for word in sys.argv[2:]])
