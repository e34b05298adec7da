"""What the tests of training share: prepared rows, and a run that nothing interrupted."""

import pytest
from training_cases import rows_in, tiny_run, train_to_end


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Configuration of the data, and the rows it became."""
    return rows_in(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="session")
def prepared(data):
    return data[1]


@pytest.fixture(scope="session")
def run(data):
    """300 steps of a tiny model."""
    return tiny_run(*data)


@pytest.fixture(scope="session")
def uninterrupted(run, prepared, tmp_path_factory):
    """The run trained from beginning to end on one device."""
    return train_to_end(run, tmp_path_factory.mktemp("runs") / run.identity, prepared)
