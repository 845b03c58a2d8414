"""Start several processes, on one or many machines, as one jax program."""

import jax


def start_processes(
    coordinator: str | None = None,
    number: int | None = None,
    index: int | None = None,
    *,
    timeout: int = 300,
) -> tuple[int, int]:
    """Connect this process to the others, so that `jax.devices()` lists the devices of all.

    Call it before any other use of jax.

        srun --nodes 4 --ntasks-per-node 1 python train.py   # Slurm: start_processes()
        python train.py host0:1234 4 $i                      # plain hosts, for i = 0 .. 3, and
                                                             # start_processes("host0:1234", 4, i)

    This calls `jax.distributed.initialize` and nothing else. A service in process 0 tracks the
    processes, and collectives are those of the backend (NCCL on GPUs, gloo on CPUs). If a process
    dies, the others end with an error after a timeout. The run can resume from its last
    checkpoint with any number of processes.

    Args:
      coordinator: "host:port" of process 0, the same for all; a free port that all can reach.
      number: number of processes.
      index: number of this process, 0 .. number - 1. If all three are None, they come from the
        environment of the cluster (Slurm, Open MPI, ...).
      timeout: seconds to wait for the other processes.

    Returns:
      (index, number) of this process.

    Raises:
      ValueError: some of coordinator, number, index are missing or out of range; or none is given
        and jax finds no cluster.
      RuntimeError: jax has already started its devices, or the timeout expired.
    """
    given = {"coordinator": coordinator, "number": number, "index": index}
    missing = [name for name, value in given.items() if value is None]
    if missing and len(missing) < len(given):
        raise ValueError(
            "coordinator, number and index must be given together, or not at all (in a cluster); "
            f"missing: {', '.join(missing)}. For example coordinator='host0:1234', number=2, "
            "index=0"
        )
    if number is not None and index is not None and not 0 <= index < number:
        raise ValueError(
            f"index must be in 0 .. number - 1; got index={index}, number={number}. Count from 0"
        )
    try:
        jax.distributed.initialize(coordinator, number, index, initialization_timeout=timeout)
    except ValueError as error:
        raise ValueError(
            f"jax cannot detect the number of processes: {error}. Start under Slurm (srun) or Open "
            "MPI, or pass coordinator, number and index"
        ) from error
    return jax.process_index(), jax.process_count()
