"""Several processes, on one machine or many, that work as one."""

import jax


def start_processes(
    coordinator: str | None = None, number: int | None = None, index: int | None = None, *, timeout: int = 300
) -> tuple[int, int]:
    """Joins this process to its fellows; then `jax.devices()` are those of all. Call it before anything else of jax.

        srun --nodes 4 --ntasks-per-node 1 python train.py                 # Slurm: start_processes(), jax asks Slurm
        python train.py host0:1234 4 $i                                    # plain hosts, for i = 0 .. 3, 0 on host0:
                                                                           # start_processes("host0:1234", 4, i)

    It is `jax.distributed.initialize`, nothing else: its service in process 0 keeps the list of processes, and the
    collectives are those of the backend (NCCL on GPUs, gloo on CPUs). If a process dies, the others end with an error
    after a while, and the run goes on from its last checkpoint, with as many processes as there are then.

    Args:
      coordinator: "host:port" of process 0, the same for all; a port that is free there and reachable from all.
      number: how many processes there are.
      index: which one this is, 0 .. number - 1. All three None = as the cluster's environment says (Slurm, Open MPI, ...).
      timeout: seconds to wait for the others.

    Returns:
      (index, number) of this process.

    Raises:
      ValueError: some of coordinator, number, index are missing or out of range; or none is given and jax finds no cluster.
      RuntimeError: jax has already started its devices, or the others did not come in time.
    """
    given = {"coordinator": coordinator, "number": number, "index": index}
    missing = [name for name, value in given.items() if value is None]
    if missing and len(missing) < len(given):
        raise ValueError(
            f"coordinator, number and index go together, or are all left to the cluster's environment; missing: "
            f"{', '.join(missing)}. Give for example coordinator='host0:1234', number=2, index=0"
        )
    if number is not None and index is not None and not 0 <= index < number:
        raise ValueError(f"index must be in 0 .. number - 1; got index={index}, number={number}. Number from 0")
    try:
        jax.distributed.initialize(coordinator, number, index, initialization_timeout=timeout)
    except ValueError as error:
        raise ValueError(
            f"jax cannot tell how many processes there are: {error}. Start under Slurm (srun) or Open MPI, or give "
            "coordinator, number and index"
        ) from error
    return jax.process_index(), jax.process_count()
