"""Every test of generation runs on a mesh of one device unless it makes its own."""

import sys
from pathlib import Path

import jax
import pytest

from parallel.mesh import device_mesh

sys.path.append(str(Path(__file__).parent.parent / "models"))  # for its cases


@pytest.fixture(autouse=True)
def _mesh():
    with jax.set_mesh(device_mesh("data=1", jax.devices()[:1])):
        yield
