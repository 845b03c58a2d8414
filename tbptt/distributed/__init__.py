"""Several devices, several machines, several seeds: where lanes lie, never what is computed.

    start_processes(coordinator, processes, process)               # several processes only; before all else of jax
    split_cpu()                                                    # CPUs only, a device a core; before jax starts
    mesh = batch_mesh(devices)
    loss_fn = sharded_loss(loss_fn, cell.initial_carry, mesh)        # then any estimator of it
    state = init_sharded_state(make_state, lanes, mesh)                    # make_state(lanes): see state_shardings
    state = ...                                                    # or restored from a checkpoint, to where `state` lies
    step = make_sharded_step(make_train_step(estimator, optimizer), state)
    stream = RecordingStream(source, lanes, chunk, make_batch, rows=local_rows(lanes, mesh))
    for i, piece in read_ahead(stream, position, put=functools.partial(put_batch, mesh=mesh)):
        state, metrics = step(state, piece.batch)

One device is a mesh of one: the same lines serve for all. Seeds: `init_seeds`, `over_seeds`; both compose with the above,
`make_sharded_step(over_seeds(step), states)` with states = init_sharded_state(lambda lanes: init_seeds(...), lanes, mesh).
"""

from tbptt.distributed.batch_sharding import init_sharded_state as init_sharded_state
from tbptt.distributed.batch_sharding import local_rows as local_rows
from tbptt.distributed.batch_sharding import make_sharded_step as make_sharded_step
from tbptt.distributed.batch_sharding import put_batch as put_batch
from tbptt.distributed.batch_sharding import state_shardings as state_shardings
from tbptt.distributed.loss import sharded_loss as sharded_loss
from tbptt.distributed.mesh import batch_mesh as batch_mesh
from tbptt.distributed.mesh import split_cpu as split_cpu
from tbptt.distributed.processes import start_processes as start_processes
from tbptt.distributed.seeds import init_seeds as init_seeds
from tbptt.distributed.seeds import over_seeds as over_seeds
