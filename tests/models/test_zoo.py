"""Named architectures, and ladders of their sizes."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models import zoo
from models.cost import cost
from models.head import Tying
from models.ladder import BAND, Convention, closest, head_dim, ladder
from models.positions import Positions


@pytest.mark.parametrize("name", zoo.PUBLISHED)
def test_published_sizes(name):
    assert cost(zoo.get(name)).params == zoo.PUBLISHED[name].params


def test_well_known_counts():
    """Written here once more, so that a slip in the table cannot agree with itself."""
    known = {"gpt2": 124_439_808, "llama-7b": 6_738_415_616, "llama-3-8b": 8_030_261_248, "gpt2-xl": 1_557_611_200}
    assert known == {name: cost(zoo.get(name)).params for name in known}


def test_families_are_found():
    """Each file's families are there by name and as functions, with a line that says what they are."""
    for name, build in zoo.FAMILIES.items():
        assert zoo.family(name) is build is getattr(zoo, build.__name__)
        assert build.__doc__.partition("\n")[0].endswith(".")
    files = {path.stem for path in Path(zoo.__file__).parent.glob("*.py")} - {"__init__", "base", "registry"}
    assert files == {build.__module__.rpartition(".")[2] for build in zoo.FAMILIES.values()}


def test_hidden_units_of_llama():
    assert [zoo.gated_hidden(width) for width in (4096, 5120, 6656, 8192)] == [11_008, 13_824, 17_920, 22_016]
    for width in range(8, 1024, 8):
        assert 8 / 3 * width <= zoo.gated_hidden(width) < 8 / 3 * width + 64


def test_settings_reach_the_architecture():
    sizes = dict(width=32, depth=2, heads=4, vocab=64, length=16)
    made = zoo.make("llama", **sizes, kv_heads=2, tying=Tying.TIED, dropout=0.1, positions=Positions.LEARNED)
    block = made.decoder.pattern[0]
    assert (block.mixer.kv_heads, made.head.tying, made.family) == (2, Tying.TIED, "llama")
    assert (block.dropout, block.mixer.dropout, made.embedding.dropout) == (0.1, 0.1, 0.1)
    assert (block.mixer.positions, made.embedding.positions) == (Positions.NONE, Positions.LEARNED)
    assert zoo.llama(**sizes) == zoo.make("llama", **sizes) != made


@pytest.mark.parametrize(
    ("message", "ask"),
    [
        ("did you mean 'gpt2-large'", lambda: zoo.get("gpt2-lage")),
        ("'llama' is a family, with sizes .*llama-7b", lambda: zoo.get("llama")),
        ("did you mean 'llama'", lambda: zoo.family("lama")),
        ("did you mean 'kv_heads'", lambda: zoo.make("llama", width=8, depth=1, heads=1, kv_head=1)),
        ("vocab, length must be given", lambda: zoo.make("decoder", width=8, depth=1, heads=1)),
        ("did you mean 'decoder'", lambda: closest("decodr", 1e6, vocab=64, length=8)),
        ("did you mean 'dropout'", lambda: closest("decoder", 1e6, vocab=64, length=8, droput=0.1)),
        ("chooses hidden by itself", lambda: closest("decoder", 1e6, vocab=64, length=8, hidden=7)),
        ("smallest decoder .* 512 has 4,888 params and 1,000", lambda: closest("decoder", 1000, vocab=512, length=8)),
        ("largest decoder", lambda: closest("decoder", 1e15, vocab=512, length=8)),
        ("only 2 shapes", lambda: ladder("decoder", 5e3, 1e4, 3, vocab=512, length=8)),
        ("makes no sense", lambda: ladder("decoder", 2e6, 1e6, 3, vocab=512, length=8)),
        ("makes no sense", lambda: ladder("decoder", 1e6, 1e6, 2, vocab=512, length=8)),
        ("no shape .* 4096 key/value heads", lambda: closest("llama", 1e9, vocab=512, length=8, kv_heads=4096)),
    ],
)
def test_mistakes(message, ask):
    with pytest.raises(ValueError, match=message):
        ask()


RANGES = [
    ("decoder", 5e3, 1e6, 8, dict(vocab=512, length=128)),
    ("decoder", 2e3, 3e5, 6, dict(vocab=512, length=128, convention=Convention.NONEMBEDDING)),
    ("decoder", 1e6, 1e12, 25, dict(vocab=1024, length=256)),
    ("llama", 2e4, 1e9, 12, dict(vocab=512, length=256)),
    ("llama", 1e9, 1e11, 7, dict(vocab=32_000, length=2048, kv_heads=4)),
    ("gpt2", 1e6, 1e10, 40, dict(vocab=1024, length=256, convention=Convention.NONEMBEDDING)),
    ("gpt2", 1.3e8, 1.6e9, 4, dict(vocab=50_257, length=1024)),
    ("bert", 1e5, 3e8, 10, dict(vocab=512, length=128)),
    ("t5", 1e5, 3e9, 10, dict(vocab=512, length=128)),
    ("t5-1.1", 1e6, 1e9, 6, dict(vocab=512, length=128)),
]


@pytest.mark.parametrize(("family", "low", "high", "count", "options"), RANGES)
def test_ladders_are_sane(family, low, high, count, options):
    rungs = ladder(family, low, high, count, **options)
    convention = options.get("convention", Convention.PARAMS)
    sizes = np.array([convention.count(cost(rung)) for rung in rungs], float)
    assert len(rungs) == count
    assert (np.diff(sizes) > 0).all()
    for size, target in zip(sizes, np.geomspace(low, high, count), strict=True):
        allowed = 0.03 if target >= 1e8 else 0.07 if target >= 1e6 else 0.15 if target >= 1e5 else 0.6
        assert abs(size / target - 1) < allowed
    for rung in rungs:
        mixer, width = rung.blocks[0].mixer, rung.width
        assert mixer.head_dim in (8, 16, 32, 64, 128)
        assert mixer.head_dim * mixer.heads == width
        assert width % (128 if width >= 1024 else 64 if width >= 256 else 8) == 0
        assert mixer.heads >= 2 or width == 8
        assert 1 / BAND <= rung.stacks[0].depth / (width / 8) ** (5 / 9) <= BAND
        assert (rung.vocab, rung.length) == (options["vocab"], options["length"])
        assert mixer.kv_heads == options.get("kv_heads", mixer.heads)
    assert ladder(family, low, high, count, **options) == rungs


def test_heads_grow_with_the_width():
    dims = [head_dim(width) for width in range(8, 5000, 8)]
    assert dims == sorted(dims)
    assert set(dims) == {8, 16, 32, 64, 128}


@pytest.mark.parametrize("target", [6e3, 2.4e4, 7e4, 3e5, 5e6, 2.2e8])
def test_closest_is_nearly_the_nearest(target):
    """Against trying everything: what is given away for a better shape is at most 3 % of the size."""
    best = math.inf
    for width in [w for w in range(8, 2049, 8) if w % head_dim(w) == 0]:
        for depth in range(1, 40):
            if 1 / BAND <= depth / (width / 8) ** (5 / 9) <= BAND:
                made = zoo.decoder(width=width, depth=depth, heads=width // head_dim(width), vocab=512, length=64)
                best = min(best, abs(math.log(cost(made).params / target)))
    chosen = cost(closest("decoder", target, vocab=512, length=64)).params
    assert best <= abs(math.log(chosen / target)) <= best + 0.03


def test_every_named_shape_finds_itself():
    """A shape on the ladder is the closest to its own size."""
    rung = closest("llama", 3e7, vocab=1024, length=256)
    assert closest("llama", cost(rung).params, vocab=1024, length=256) == rung
    assert closest("llama", 3e7, vocab=1024, length=512) == replace(rung, length=512)
