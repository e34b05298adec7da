"""Configurations to JSON and back; what is wrong in one is said where."""

import json
import random
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

import pytest

from experiments.configuration import from_json, to_json
from experiments.data.packed import DataConfig
from experiments.data.sources import Documents, Embedded, TextFiles, Tfds
from experiments.data.tokenizer import Kind, TokenizerConfig
from experiments.objectives import Causal
from experiments.optimizer import AdamW, Schedule, Shape
from experiments.placement import Placement
from experiments.runs import Run
from models import zoo
from models.attention import Attention
from models.config import Architecture
from models.execution import Kernel, Layers, Precision, Remat
from models.head import Head, Tying
from models.layers import RMS_NORM
from models.positions import Positions

SMALL = dict(width=16, depth=2, heads=2, vocab=260, length=16)
GPT2 = zoo.gpt2(**SMALL, dropout=0.1)
RUN = Run(
    architecture=zoo.llama(**SMALL, qk_norm=RMS_NORM),
    data=DataConfig(source=TextFiles(paths=("a.txt", "b/*.txt"), split_into=Documents.LINE), length=16),
    rows="0123456789abcdef",
    schedule=Schedule(peak=0.1, shape=Shape.WSD),
    batch=4,
    steps=10,
    precision=Precision.BFLOAT16,
    evaluation_rows=3,
)


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Circle:
    radius: float


@dataclass(frozen=True)
class Square:
    side: float = 1.0


@dataclass(frozen=True)
class Picture:
    shape: Circle | Square
    frame: Square | None = None
    colour: Colour | None = None
    ratio: float | str = 1.0
    folder: Path = Path("pictures")
    names: tuple[str, ...] = ()
    framed: bool = False
    copies: int = 1


PICTURE = Picture(Circle(1.5), Square(2.0), Colour.BLUE, "wide", Path("/a/b"), ("x", "y"), True, 7)


@pytest.mark.parametrize(
    "value",
    [
        RUN,
        replace(RUN, evaluation_rows=None, architecture=GPT2, optimizer=AdamW(clip=None)),
        replace(
            RUN,
            data=DataConfig(source=Embedded(), tokenizer=TokenizerConfig(kind=Kind.FILE, path="t.model"), length=16),
        ),
        replace(RUN, data=DataConfig(source=Tfds(name="wiki40b/en"), length=8)),
        zoo.decoder(**SMALL, positions=Positions.ALIBI, window=5, score_cap=30.0, logit_cap=2.0),
        Placement(mesh="fsdp=2", layers=Layers.SCAN, remat=Remat.FULL, kernel=Kernel.DENSE, logits_chunk=8),
        Placement(),
        Causal(bos=5),
        PICTURE,
        Picture(Square()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_round_trip_through_text(value):
    text = json.dumps(to_json(value))
    assert from_json(type(value), json.loads(text)) == value
    assert json.dumps(to_json(from_json(type(value), json.loads(text)))) == text


def test_what_is_stored_is_plain_and_complete():
    assert to_json(PICTURE) == {
        "kind": "Picture",
        "shape": {"kind": "Circle", "radius": 1.5},
        "frame": {"kind": "Square", "side": 2.0},
        "colour": "blue",
        "ratio": "wide",
        "folder": "/a/b",
        "names": ["x", "y"],
        "framed": True,
        "copies": 7,
    }


def test_random_settings_survive():
    rng = random.Random(0)
    for _ in range(50):
        optimizer = AdamW(b1=rng.random(), eps=10 ** rng.uniform(-20, 0), clip=rng.choice([None, rng.random()]))
        assert from_json(AdamW, json.loads(json.dumps(to_json(optimizer)))) == optimizer


def edited(value, path, new):
    """The stored value with the entry at a dotted path replaced."""
    stored = to_json(value)
    *folders, name = path.split(".")
    place = stored
    for folder in folders:
        place = place[int(folder) if folder.isdecimal() else folder]
    place[name] = new
    return stored


@pytest.mark.parametrize(
    ("path", "new", "message"),
    [
        ("optimizer.weight_dekay", 0.1, "run.optimizer: AdamW has no setting 'weight_dekay'; did you mean"),
        ("schedule.zzz", 1, "run.schedule: Schedule has no setting 'zzz'; there are peak, shape, warmup, decay, final"),
        ("steps", "10", "run.steps: want int, not '10'"),
        ("steps", 1.5, "run.steps: want int, not 1.5"),
        ("steps", True, "run.steps: want int, not True"),
        ("steps", None, "run.steps: want int, not None"),
        ("steps", 0, "run: steps is 0 and must be at least 1"),
        ("schedule.peak", "high", "run.schedule.peak: want float, not 'high'"),
        ("schedule.peak", False, "run.schedule.peak: want float, not False"),
        ("schedule.shape", "cosin", "run.schedule.shape: 'cosin' is not one of 'cosine', 'linear'"),
        ("optimizer.clip", "1", "run.optimizer.clip: want float, not '1'"),
        ("optimizer.clip", {}, "run.optimizer.clip: want float, not {}"),
        ("evaluation_rows", 1.0, "run.evaluation_rows: want int, not 1.0"),
        ("data", 3, "run.data: cannot be 3"),
        ("data.source", "text", "run.data.source: cannot be 'text'"),
        (
            "data.source.kind", "Textfiles",
            "run.data.source: kind 'Textfiles' is not one of Embedded, TextFiles, Sequences, Tfds",
        ),
        ("data.source.paths", "a.txt", "run.data.source.paths: want a list, not 'a.txt'"),
        ("architecture.decoder.pattern.0.mixer.heads", "2", "run.architecture.decoder.pattern.0.mixer.heads: want int"),
        ("objective.kind", "Prefix", "run.objective: kind 'Prefix' is not one of Causal, Masked"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_where(path, new, message):
    with pytest.raises(ValueError) as caught:
        from_json(Run, edited(RUN, path, new), "run")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_missing_setting_is_named_and_a_default_fills_in():
    stored = to_json(RUN)
    del stored["seed"], stored["optimizer"]["b1"]
    assert from_json(Run, stored) == RUN
    del stored["architecture"]["width"]
    with pytest.raises(ValueError, match=r"run\.architecture: Architecture needs 'width'"):
        from_json(Run, stored, "run")


def test_a_folder_is_text():
    with pytest.raises(ValueError, match=r"picture\.folder: want Path, not 5"):
        from_json(Picture, edited(PICTURE, "folder", 5), "picture")


def test_whole_numbers_are_read_as_fractions_where_those_are_wanted():
    read = from_json(AdamW, {"clip": 1, "weight_decay": 0})
    assert (type(read.clip), type(read.weight_decay)) == (float, float)


def test_what_json_cannot_hold_is_refused():
    with pytest.raises(TypeError, match="type set, which JSON cannot"):
        to_json({1})


def test_every_part_of_a_run_is_a_dataclass_or_plain():
    """A field of another type would be an error only when a run is stored."""
    for architecture in (GPT2, RUN.architecture, zoo.get("gpt2-xl")):
        assert from_json(Architecture, to_json(architecture)) == architecture
    assert from_json(Head, to_json(Head(tying=Tying.UNTIED))) == Head(tying=Tying.UNTIED)
    attention = Attention(heads=2, head_dim=4, kv_heads=1, qk_norm=None)
    assert from_json(Attention, to_json(attention)) == attention
