"""What the tests of training share: prepared rows, and a run that nothing interrupted."""

import pytest
from storage_service import storage_service
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


@pytest.fixture(scope="session")
def storage():
    """A service that all clients of Google's storage in this process, and in its children, take for the real one."""
    with storage_service() as service, pytest.MonkeyPatch.context() as patch:
        for name, value in service.environment().items():
            patch.setenv(name, value)
        pytest.importorskip("gcsfs")
        import fsspec

        patch.setitem(fsspec.config.conf, "gcs", {"token": "anon"})
        yield service


@pytest.fixture
def bucket(storage):
    """URL of an empty bucket."""
    name = f"bucket-{len(storage.buckets)}"
    storage.buckets[name] = {}
    yield f"gs://{name}"
    storage.refuse = lambda *request: None
