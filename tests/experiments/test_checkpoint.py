"""What was saved comes back bit for bit, on any mesh; damage is noticed; nothing half-written counts."""

import gc
import random
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.checkpoint import Checkpoints, Extent
from experiments.digest import digest


def mesh_of(data, tensor):
    return jax.make_mesh(
        (data, tensor), ("data", "tensor"), axis_types=(AxisType.Explicit,) * 2, devices=jax.devices()[: data * tensor]
    )


def sharded(shape, mesh):
    spec = P("data", "tensor") if len(shape) == 2 else P()
    return NamedSharding(mesh, spec)


def train_state(mesh=None):
    """Parameters (NNX, one of them bfloat16), AdamW moments, integers; values without a pattern."""
    model = nnx.Linear(8, 16, rngs=nnx.Rngs(0))
    model.bias.set_value(jnp.linspace(-3, 3, 16, dtype=jnp.bfloat16))
    tx = optax.adamw(1e-3)
    grads = jax.tree.map(
        lambda x: jnp.sin(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape).astype(x.dtype), model
    )
    _, opt = tx.update(grads, tx.init(model), model)
    state = {"model": model, "opt": opt, "step": jnp.int32(7), "tokens": jnp.arange(5, dtype=jnp.uint8), "runs": 3}
    if mesh is not None:
        state = jax.tree.map(lambda x: jax.device_put(x, sharded(jnp.shape(x), mesh)), state)
    return state


def abstract(state, mesh=None):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            jnp.shape(x), jnp.result_type(x), sharding=None if mesh is None else sharded(jnp.shape(x), mesh)
        ),
        state,
    )


def bits(tree):
    return [
        (str(jnp.result_type(x)), jnp.shape(x), np.asarray(x).tobytes())
        for x in jax.tree.leaves(jax.tree.map(jnp.asarray, tree))
    ]


def small_state(step):
    """Large enough (4 kB an array) that array data is stored in files of its own, not within an index."""
    values = np.random.default_rng(step).standard_normal((2, 1024), dtype=np.float32)
    return {f"layer{i}": jnp.asarray(row) for i, row in enumerate(values)}


def files_of(folder):
    return sorted(path for path in Path(folder).rglob("*") if path.is_file())


@pytest.fixture
def two_saved(tmp_path):
    """A folder with good checkpoints of steps 1 and 2."""
    with Checkpoints(tmp_path / "run") as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, small_state(step), metadata={"tokens": 100 * step})
    return tmp_path / "run"


def restore_and_messages(folder):
    with warnings.catch_warnings(record=True) as caught, Checkpoints(folder) as checkpoints:
        warnings.simplefilter("always")
        restored = checkpoints.restore(abstract(small_state(0)))
    return restored, [str(w.message) for w in caught if str(folder) in str(w.message)]


class TestRoundTrip:
    def test_bitwise_with_structure_and_metadata(self, tmp_path):
        state = train_state()
        metadata = {"tokens": 12345678901234, "loss": 2.5, "names": ["a", None], "nested": {"x": True}}
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(7, state, metadata=metadata)
            restored = checkpoints.restore(abstract(state))
        assert restored.step == 7
        assert restored.metadata == metadata
        assert jax.tree.structure(restored.state) == jax.tree.structure(state)
        assert isinstance(restored.state["model"], nnx.Linear)
        assert bits(restored.state) == bits(state)

    def test_every_dtype(self, tmp_path):
        dtypes = ["bool", "int8", "uint16", "int32", "float16", "bfloat16", "float8_e4m3fn", "complex64"]
        values = jnp.asarray(np.random.default_rng(0).integers(0, 100, (3, 5)))
        state = {dtype: values.astype(dtype) for dtype in dtypes}
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(1, state, metadata={})
            assert bits(checkpoints.restore(abstract(state)).state) == bits(state)

    def test_another_mesh(self, tmp_path):
        state = train_state(mesh_of(4, 2))
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(1, state, metadata={})
            for mesh in (mesh_of(4, 2), mesh_of(2, 1), mesh_of(1, 1)):
                wanted = abstract(state, mesh)
                restored = checkpoints.restore(wanted).state
                assert bits(restored) == bits(state)
                for found, leaf in zip(jax.tree.leaves(restored), jax.tree.leaves(wanted), strict=True):
                    assert found.sharding == leaf.sharding

    def test_special_values_keep_their_bits(self, tmp_path):
        state = {
            "x": jax.lax.bitcast_convert_type(
                jnp.asarray([0x7FC00001, 0xFF800000, 0x80000000, 1], jnp.uint32), jnp.float32
            )
        }
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(1, state, metadata={})
            assert bits(checkpoints.restore(abstract(state)).state) == bits(state)

    def test_buffers_may_be_donated_right_after_save(self, tmp_path):
        advance = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
        state = {"x": jnp.zeros((512, 1024)), "n": jnp.int32(0)}
        with Checkpoints(tmp_path, keep=4) as checkpoints:
            for step in range(1, 5):
                state = advance(state)
                checkpoints.save(step, state, metadata={})
                for _ in range(10):
                    state = advance(state)
                wanted = abstract(state)
                restored = checkpoints.restore(wanted).state
                assert int(restored["n"]) == 11 * (step - 1) + 1
                assert bool((restored["x"] == restored["n"]).all())


class TestFolder:
    def test_empty_or_absent_folder_is_none(self, tmp_path):
        assert Checkpoints(tmp_path).restore({}) is None
        assert Checkpoints(tmp_path / "absent").restore({}) is None
        assert not (tmp_path / "absent").exists()

    def test_retention_keeps_the_newest(self, tmp_path):
        with Checkpoints(tmp_path, keep=2) as checkpoints:
            for step in (1, 5, 9, 20):
                checkpoints.save(step, small_state(step), metadata={})
            checkpoints.wait()
            assert checkpoints.steps() == (9, 20)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["20", "9"]

    def test_a_step_is_not_overwritten(self, two_saved):
        before = {path: path.read_bytes() for path in files_of(two_saved)}
        with Checkpoints(two_saved) as checkpoints:
            for step in (1, 2):
                with pytest.raises(ValueError, match="already holds step 2"):
                    checkpoints.save(step, small_state(9), metadata={})
        assert {path: path.read_bytes() for path in files_of(two_saved)} == before

    def test_killed_save_never_counts(self, tmp_path):
        program = textwrap.dedent(
            """
            import sys, jax.numpy as jnp
            from experiments.checkpoint import Checkpoints, Extent
            import jax
            wanted = {"x": jax.ShapeDtypeStruct((2**20,), jnp.float32)}
            with Checkpoints(sys.argv[1]) as checkpoints:
                found = checkpoints.restore(wanted)
                step = found.step if found else 0
                while True:
                    step += 1
                    checkpoints.save(step, {"x": jnp.full(2**20, step, jnp.float32)}, metadata={"step": step})
                    print(step, flush=True)
            """
        )
        last, leftovers = 0, 0
        for delay in (0.0, 0.03):
            with subprocess.Popen(
                [sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE, text=True
            ) as child:
                for _ in range(3):
                    announced = int(child.stdout.readline())
                time.sleep(delay)
                child.send_signal(signal.SIGKILL)
            leftovers += any("tmp" in path.name for path in tmp_path.iterdir())
            with Checkpoints(tmp_path) as checkpoints, warnings.catch_warnings():
                warnings.simplefilter("error")
                found = checkpoints.restore({"x": jax.ShapeDtypeStruct((2**20,), jnp.float32)})
            assert last < announced - 1 <= found.step  # the save before the announced one was waited for
            assert found.metadata == {"step": found.step}
            assert bool((found.state["x"] == found.step).all())
            last = found.step
        assert leftovers, "no kill fell into a save: the test would show nothing"
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(last + 1, {"x": jnp.zeros(2**20)}, metadata={})
        assert not [path for path in tmp_path.iterdir() if "tmp" in path.name]


class TestDamage:
    @pytest.fixture(autouse=True)
    def small_heap(self):
        """Each damaged checkpoint costs a garbage collection; hide from it what pytest and the imports allocated."""
        gc.freeze()
        yield
        gc.unfreeze()

    def test_single_bit_flips(self, two_saved):
        truth = bits(small_state(2))
        previous = bits(small_state(1))
        rng = random.Random(0)
        names = [path.relative_to(two_saved) for path in files_of(two_saved / "2" / "state")]
        sizes = [(two_saved / name).stat().st_size for name in names]
        fallbacks = 0
        for trial in range(100):
            folder = two_saved
            (name,) = rng.choices(names, weights=sizes)
            intact = (folder / name).read_bytes()
            position = rng.randrange(8 * len(intact))
            flipped = bytearray(intact)
            flipped[position // 8] ^= 1 << position % 8
            (folder / name).write_bytes(flipped)
            restored, messages = restore_and_messages(folder)
            (folder / name).write_bytes(intact)
            if restored.step == 2:
                assert bits(restored.state) == truth, f"trial {trial}: bit {position} of {name} passed unnoticed"
                assert not messages
            else:
                fallbacks += 1
                assert bits(restored.state) == previous
                assert len(messages) == 1
                assert str(folder / "2") in messages[0]
        assert fallbacks > 50, "hardly any flip hit array data: the test would show nothing"

    @pytest.mark.parametrize("damage", ["truncate", "delete", "empty"])
    def test_every_file(self, two_saved, damage):
        truth = {1: bits(small_state(1)), 2: bits(small_state(2))}
        for path in files_of(two_saved / "2"):
            intact = path.read_bytes()
            if damage == "delete":
                path.unlink()
            else:
                path.write_bytes(intact[: len(intact) // 2] if damage == "truncate" else b"")
            restored, messages = restore_and_messages(two_saved)
            path.write_bytes(intact)
            assert bits(restored.state) == truth[restored.step]
            assert restored.metadata == {"tokens": 100 * restored.step}
            assert len(messages) == (restored.step == 1)
            if path.is_relative_to(two_saved / "2" / "state" / "layer1"):
                assert "state/layer1/" in messages[0]

    def test_flipped_metadata(self, two_saved):
        path = two_saved / "2" / "_CHECKPOINT_METADATA"
        assert path.read_bytes().count(b"200") == 1
        path.write_bytes(path.read_bytes().replace(b"200", b"300"))
        restored, messages = restore_and_messages(two_saved)
        assert (restored.step, restored.metadata) == (1, {"tokens": 100})
        assert len(messages) == 1

    def test_training_goes_on_from_the_good_one(self, two_saved):
        shutil.rmtree(two_saved / "2" / "state")
        with Checkpoints(two_saved) as checkpoints:
            with pytest.warns(UserWarning, match="damaged"):
                assert checkpoints.restore(abstract(small_state(0))).step == 1
            checkpoints.save(2, small_state(2), metadata={})
            restored = checkpoints.restore(abstract(small_state(0)))
            assert restored.step == 2
            assert bits(restored.state) == bits(small_state(2))

    def test_none_good_is_an_error(self, two_saved):
        for step in ("1", "2"):
            shutil.rmtree(two_saved / step / "state")
        with (
            Checkpoints(two_saved) as checkpoints,
            pytest.warns(UserWarning, match="damaged"),
            pytest.raises(OSError, match="none of the 2 checkpoints"),
        ):
            checkpoints.restore(abstract(small_state(0)))

    def test_broken_restore_is_caught(self, two_saved, monkeypatch):
        import orbax.checkpoint as ocp

        genuine = ocp.CheckpointManager.restore

        def off_by_one_bit(self, step, **arguments):
            found = genuine(self, step, **arguments)
            if step == 2:
                x = found["state"]["layer1"]
                found["state"]["layer1"] = x.at[17].set(jnp.nextafter(x[17], jnp.float32(jnp.inf)))
            return found

        monkeypatch.setattr(ocp.CheckpointManager, "restore", off_by_one_bit)
        restored, messages = restore_and_messages(two_saved)
        assert restored.step == 1
        assert str(two_saved / "2" / "state" / "layer1") in messages[0]


class TestMistakes:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda s: s | {"layer1": jnp.zeros(7)}, r"leaf 'layer1' is float32\[1024\], wanted float32\[7\]"),
            (
                lambda s: s | {"layer1": jnp.zeros(1024, jnp.bfloat16)},
                r"leaf 'layer1' is float32\[1024\], wanted bfloat16",
            ),
            (lambda s: s | {"extra": jnp.zeros(2)}, r"no leaf 'extra', wanted float32\[2\]"),
            (lambda s: {k: v for k, v in s.items() if k != "layer0"}, r"its leaf 'layer0', float32\[1024\], is not in"),
            (
                lambda s: {k.replace("layer0", "layer_0"): v for k, v in s.items()},
                r"no leaf 'layer_0' \(it has 'layer0'\)",
            ),
        ],
    )
    def test_another_model_is_one_line(self, two_saved, change, message):
        with Checkpoints(two_saved) as checkpoints, pytest.raises(ValueError, match=message) as caught:
            checkpoints.restore(abstract(change(small_state(0))))
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("leaf", "message"),
        [
            (jax.random.key(0), "'x.y'.*typed PRNG key"),
            ("text", "'x.y'.*found str"),
            (jnp.zeros((2, 0)), r"without elements, float32\[2,0\]"),
            (np.arange(3.0), "float64, which JAX would narrow"),
        ],
    )
    def test_unsupported_leaf(self, tmp_path, leaf, message):
        with Checkpoints(tmp_path) as checkpoints, pytest.raises(ValueError, match=message):
            checkpoints.save(1, {"x": {"y": leaf}}, metadata={})

    def test_metadata_must_be_json(self, tmp_path):
        with Checkpoints(tmp_path) as checkpoints, pytest.raises(ValueError, match="must be JSON"):
            checkpoints.save(1, {"x": jnp.zeros(1)}, metadata={"x": object()})

    def test_folder_that_cannot_be_made(self, tmp_path):
        (tmp_path / "file").write_text("")
        with (
            Checkpoints(tmp_path / "file" / "run") as checkpoints,
            pytest.raises(OSError, match="could not write") as caught,
        ):
            checkpoints.save(1, {"x": jnp.zeros(1)}, metadata={})
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("surfaces_in", ["wait", "save", "close"])
    def test_disk_full_while_saving(self, tmp_path, surfaces_in):
        """A limit on the size of files stands for the full disk: both make the write fail in the background thread."""
        state = {"x": jnp.asarray(np.random.default_rng(0).standard_normal(2**16, dtype=np.float32))}
        checkpoints = Checkpoints(tmp_path)
        surface = {
            "wait": checkpoints.wait,
            "save": lambda: checkpoints.save(3, state, metadata={}),
            "close": checkpoints.close,
        }[surfaces_in]
        checkpoints.save(1, state, metadata={})
        checkpoints.wait()
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        try:
            checkpoints.save(2, state, metadata={})
            with pytest.raises(OSError, match="could not write the checkpoint of step 2") as caught:
                surface()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "\n" not in str(caught.value)
        assert checkpoints.steps() == (1,)
        checkpoints.save(4, state, metadata={})
        checkpoints.close()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "4"]


class TestDigest:
    def test_equals_its_definition(self):
        values = np.random.default_rng(0).standard_normal((6, 4), dtype=np.float32)
        expected = 0
        for position, word in enumerate(values.view(np.uint32).ravel()):
            expected += int(word) * ((position * 2654435761) % 2**32 | 1)
        assert int(digest(jnp.asarray(values))) == expected % 2**32

    def test_same_on_every_mesh(self):
        values = np.random.default_rng(0).standard_normal((8, 16), dtype=np.float32)
        found = {
            int(jax.jit(digest)(jax.device_put(values, NamedSharding(mesh, spec))))
            for mesh in (mesh_of(4, 2), mesh_of(1, 8), mesh_of(2, 1))
            for spec in (P("data", "tensor"), P("tensor"), P(None, "data"), P())
        }
        assert found == {int(digest(jnp.asarray(values)))}

    def test_every_single_bit_and_every_exchange(self):
        words = jnp.asarray(np.random.default_rng(1).integers(0, 2**16, 64), jnp.uint16)
        places = jnp.arange(64 * 16)
        flips = jax.vmap(
            lambda p: digest(words.at[p // 16].set(words[p // 16] ^ (jnp.uint16(1) << (p % 16).astype(jnp.uint16))))
        )(places)
        exchanges = jax.vmap(lambda i, j: digest(words.at[i].set(words[j]).at[j].set(words[i])))(
            *np.triu_indices(64, 1)
        )
        assert len(np.unique(words)) == 64
        assert int(digest(words)) not in {*np.asarray(flips).tolist(), *np.asarray(exchanges).tolist()}


def test_a_part_is_read_and_the_rest_is_left_alone(tmp_path):
    """What is not wanted may even be damaged; what is wanted must be there, and as it was saved."""
    state, folder = train_state(), tmp_path / "run"
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(1, state, metadata={})
    part = {"model": state["model"]}
    damaged = [file for file in files_of(folder) if "/state/opt." in str(file) and "/c/" in str(file)]
    assert len(damaged) > 2
    for file in damaged:
        file.write_bytes(b"")
    with warnings.catch_warnings(action="error"), Checkpoints(folder) as checkpoints:
        found = checkpoints.restore(abstract(part), extent=Extent.PART)
        assert bits(found.state) == bits(part)
        with pytest.raises(ValueError, match=r"its leaf .* is not in the wanted state"):
            checkpoints.restore(abstract(part))
        with pytest.raises(ValueError, match=r"it has no leaf 'other'"):
            checkpoints.restore(abstract(part | {"other": jnp.zeros(3)}), extent=Extent.PART)


def test_orbax_is_imported_by_the_first_use_only(tmp_path):
    program = textwrap.dedent(
        """
        import sys
        from experiments.checkpoint import Checkpoints, Extent
        Checkpoints(sys.argv[1]).restore({})
        print("orbax" in sys.modules)
        """
    )
    command = [sys.executable, "-c", program, tmp_path]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "False"
