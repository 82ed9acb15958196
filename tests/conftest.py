"""What every test shares: a cache of its own, one thread, and Ray where it is asked for."""

import os
from collections.abc import Iterator

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, which looks at it once
# What a local object store takes, in place of the user's own keys; Ray's workers have them from here.
os.environ |= {"AWS_ACCESS_KEY_ID": "test-key", "AWS_SECRET_ACCESS_KEY": "test-secret"}


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the user's cache of data and teachers out of the tests, and theirs out of it."""
    os.environ["DUX_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """A Ray of this machine alone, with two CPUs."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
