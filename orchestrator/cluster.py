"""Ray on this machine, or on a cluster at an address."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from orchestrator.run_directory import RunFailed


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Ray while the block runs: of this machine alone, bound to localhost, unless an address is given.

    A Ray that is up already in this process (a notebook's, a test's) is used and left as it is.

    Raises:
        RunFailed: nothing answers at the address.
    """
    if ray.is_initialized():
        yield
        return
    # Ray's coming default, which it else warns of: a worker that asks for no GPU keeps its CUDA_VISIBLE_DEVICES.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        # "local" and not None: the file of a cluster that was killed must not decide where this one is.
        ray.init(
            address=address or "local",
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=True,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        if address is None:
            raise
        raise RunFailed(f"no Ray cluster answers at {address}: {' '.join(str(error).split())[:200]}") from error
    try:
        yield
    finally:
        ray.shutdown()
