"""Several devices, several machines, several seeds: where lanes lie, never what is computed."""

from tbptt.parallel.lanes import init_lanes as init_lanes
from tbptt.parallel.lanes import lane_shardings as lane_shardings
from tbptt.parallel.lanes import make_parallel_step as make_parallel_step
from tbptt.parallel.lanes import own_lanes as own_lanes
from tbptt.parallel.lanes import put_lanes as put_lanes
from tbptt.parallel.loss import over_lanes as over_lanes
from tbptt.parallel.mesh import lane_mesh as lane_mesh
from tbptt.parallel.processes import start_processes as start_processes
from tbptt.parallel.seeds import init_seeds as init_seeds
from tbptt.parallel.seeds import over_seeds as over_seeds
