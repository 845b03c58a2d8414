"""Train on several devices or machines, with the batch sharded over the devices.

    start_processes(coordinator, number, index)     # several processes only; before any use of jax
    split_cpu()                                     # CPUs only: a device per core
    mesh = batch_mesh(devices)
    loss_fn = sharded_loss(loss_fn, cell.initial_carry, mesh)       # then any estimator of it
    state = init_sharded_state(make_state, batch_size, mesh)        # see state_shardings
    state = ...                                     # or restored to the shardings of `state`
    step = make_sharded_step(make_train_step(estimator, optimizer), state)
    rows = local_rows(batch_size, mesh)
    stream = RecordingStream(source, batch_size, chunk, make_batch, rows=rows)
    for i, chunk in read_ahead(stream, position, put=functools.partial(put_batch, mesh=mesh)):
        state, metrics = step(state, chunk.batch)

The same lines work for one device, a mesh of size one. Results do not depend on the number of
devices, up to rounding. `init_seeds` and `over_seeds` train several seeds in one program; they
compose with the above: `make_sharded_step(over_seeds(step), states)` with
`states = init_sharded_state(lambda batch_size: init_seeds(...), batch_size, mesh)`.
"""

from tbptt.distributed.batch_sharding import init_sharded_state as init_sharded_state
from tbptt.distributed.batch_sharding import local_rows as local_rows
from tbptt.distributed.batch_sharding import make_sharded_step as make_sharded_step
from tbptt.distributed.batch_sharding import put_batch as put_batch
from tbptt.distributed.batch_sharding import sharded_loss as sharded_loss
from tbptt.distributed.batch_sharding import state_shardings as state_shardings
from tbptt.distributed.mesh import batch_mesh as batch_mesh
from tbptt.distributed.mesh import split_cpu as split_cpu
from tbptt.distributed.mesh import start_processes as start_processes
from tbptt.distributed.seeds import init_seeds as init_seeds
from tbptt.distributed.seeds import map_seeds as map_seeds
from tbptt.distributed.seeds import over_seeds as over_seeds
