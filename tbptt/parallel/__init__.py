"""Several devices, several machines, several seeds: where lanes lie, never what is computed.

    start_processes(coordinator, processes, process)               # several processes only; before all else of jax
    split_cpu()                                                    # CPUs only, a device a core; before jax starts
    mesh = lane_mesh(devices)
    loss_fn = over_lanes(loss_fn, cell.initial_carry, mesh)        # then any estimator of it
    state = init_lanes(make_state, lanes, mesh)                    # make_state(lanes): see lane_shardings
    state = ...                                                    # or restored from a checkpoint, to where `state` lies
    step = make_parallel_step(make_train_step(estimator, optimizer), state)
    stream = LaneStream(source, lanes, chunk, make_batch, rows=own_lanes(lanes, mesh))
    for i, piece in read_ahead(stream, position, put=functools.partial(put_lanes, mesh=mesh)):
        state, metrics = step(state, piece.batch)

One device is a mesh of one: the same lines serve for all. Seeds: `init_seeds`, `over_seeds`; both compose with the above,
`make_parallel_step(over_seeds(step), states)` with states = init_lanes(lambda lanes: init_seeds(...), lanes, mesh).
"""

from tbptt.parallel.lanes import init_lanes as init_lanes
from tbptt.parallel.lanes import lane_shardings as lane_shardings
from tbptt.parallel.lanes import make_parallel_step as make_parallel_step
from tbptt.parallel.lanes import own_lanes as own_lanes
from tbptt.parallel.lanes import put_lanes as put_lanes
from tbptt.parallel.loss import over_lanes as over_lanes
from tbptt.parallel.mesh import lane_mesh as lane_mesh
from tbptt.parallel.mesh import split_cpu as split_cpu
from tbptt.parallel.processes import start_processes as start_processes
from tbptt.parallel.seeds import init_seeds as init_seeds
from tbptt.parallel.seeds import over_seeds as over_seeds
