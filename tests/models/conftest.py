"""Every test of models runs on a mesh of one device unless it makes its own."""

import jax
import pytest

from parallel.mesh import device_mesh


@pytest.fixture(scope="session")
def one_device():
    return device_mesh("data=1", jax.devices()[:1])


@pytest.fixture(autouse=True)
def _mesh(one_device):
    with jax.set_mesh(one_device):
        yield
