"""Check that the requested device exists."""

import os

import jax


def check_platform() -> None:
    """Raise a ValueError in one sentence if jax cannot start on the platform of JAX_PLATFORMS.

    jax itself ends in an AssertionError without a text, or in a RuntimeError of its plugin.
    """
    try:
        jax.devices()
    except (AssertionError, RuntimeError) as error:
        requested = os.environ.get("JAX_PLATFORMS") or "the default of jax"
        reason = f" ({str(error).splitlines()[0]})" if str(error) else ""
        raise ValueError(
            f"no device for JAX_PLATFORMS={requested}{reason}. Unset JAX_PLATFORMS to use the "
            "devices of this machine, or install jax for that device, for example pip install "
            '"jax[cuda12]"'
        ) from error
