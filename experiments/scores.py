"""Measures of a trained model: of held-out rows, of other text, of the translations it makes."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int32

from experiments.data.batches import HeldOut
from experiments.data.sources import Documents, TextFiles
from experiments.evaluation import evaluate, row_losses
from experiments.generation import BeamSearch, Prompts, search
from experiments.generation.language import Language
from experiments.objectives import Causal, SequenceToSequence, Sides
from experiments.trained import Trained


def of_held_out(
    trained: Trained, mesh: Mesh, *, batch: int, rows: int | None = None, prepared: Path | None = None
) -> dict[str, Any]:
    """Loss of a run on the rows held out of its training, as `experiments.evaluation` has it, and its perplexity.

    Args:
        trained: the model.
        mesh: where it is.
        batch: rows at a time.
        rows: how many; None for all.
        prepared: where they are, if not in the usual place.

    Raises:
        ValueError: if the model is not of a run.
        FileNotFoundError: if the rows are not there.
    """
    if trained.run is None:
        raise ValueError(f"{trained.place} was not trained here and has no held-out rows; say with --data on what")
    run = replace(trained.run, evaluation_rows=rows)
    measured = evaluate(trained.model, run, trained.prepared(prepared), mesh, trained.model.execution, batch=batch)
    if "bits_per_byte" in measured:
        measured["bits_per_byte_se"] = measured["bits_per_byte"] * measured["loss_se"] / measured["loss"]
        measured |= _perplexity(measured)
    return measured


def of_text(
    trained: Trained,
    patterns: Sequence[str],
    documents: Documents,
    *,
    batch: int,
    length: int | None = None,
    rows: int | None = None,
    prepared: Path | None = None,
) -> dict[str, Any]:
    """Loss of a decoder on files of text, each token of every document predicted once.

    Documents begin with the token that begins or ends texts, stand one behind the other, and are cut into rows; what
    is left in the last row predicts nothing.

    Args:
        trained: a decoder that predicts the next token.
        patterns: files, or patterns of their names.
        documents: what one document is in them.
        batch: rows at a time.
        length: tokens in a row; None for what the model was trained on.
        rows: how many rows to read, the first ones; None for all.
        prepared: where the run's rows are, if not in the usual place.

    Returns:
        loss, perplexity and bits_per_byte with their standard errors, and the counts predictions and bytes.

    Raises:
        ValueError: if the model does not predict the next token, a row is longer than the model's, or there is no text.
        FileNotFoundError: if there are no such files, or no tokenizer.
    """
    model, run = trained.model, trained.run
    if Sides.of(model.config) is not Sides.DECODER or (run and not isinstance(run.objective, Causal)):
        asked = run.objective.label if run else f"no likelihood of text ({model.config.family})"
        raise ValueError(f"{trained.place} was asked {asked}: --data needs a decoder that predicts the next token")
    longest = run.data.length if run else model.config.length
    if not 1 <= (length := length or longest) <= model.config.length:
        raise ValueError(f"rows of {length} tokens must be of 1 to {model.config.length}, the model's longest")
    language = trained.language(prepared)
    # A text of another maker begins with what ends the one before, where there is nothing else.
    begin = run.objective.bos if run else (language.encode("") or [language.pad])[0]
    after = [language.end] if run else []  # what ends a document was learned, where it is known
    tokens, octets = _tokens(TextFiles(tuple(patterns), documents), language, begin, after)
    packed = np.full((-(-(len(tokens) - 1) // length), length), begin, np.int32)
    packed.ravel()[: len(tokens) - 1] = tokens[1:]
    # The last of a row is read again as the first of the next one, where it is not predicted.
    first = np.concatenate([tokens[:1], packed[:-1, -1]])[:, None]
    packed, whole = np.concatenate([first, packed], axis=1), len(packed)
    packed = packed[:rows]
    sums, counts = _losses(model, packed, Causal(bos=begin), batch)
    loss, predictions = sums.sum() / counts.sum(), int(counts.sum())
    # Standard error of a ratio of means (Cochran 1977, equation 6.13), rows as the units.
    residual = sums - loss * counts
    error = math.sqrt((residual**2).sum() / max(len(sums) - 1, 1) / len(sums)) / counts.mean()
    measured = {"loss": float(loss), "loss_se": float(error), "predictions": predictions}
    if len(packed) == whole:
        per_byte = float(sums.sum() / math.log(2) / octets)
        measured |= {"bits_per_byte": per_byte, "bits_per_byte_se": per_byte * error / loss, "bytes": octets}
    return measured | _perplexity(measured)


def bleu(
    trained: Trained, *, beams: int, batch: int, rows: int | None = None, prepared: Path | None = None
) -> dict[str, Any]:
    """BLEU (Papineni et al. 2002) of what a model says to the held-out pairs, and of saying the source again.

    Args:
        trained: an encoder-decoder trained on pairs.
        beams: of the search.
        batch: pairs at a time.
        rows: how many; None for all.
        prepared: where the run's rows are, if not in the usual place.

    Returns:
        bleu, bleu_of_copying, the number of pairs, and the signature by which sacrebleu names how it counted.

    Raises:
        ValueError: if the model was not trained on pairs, or sacrebleu is not installed.
    """
    metric = need_sacrebleu()
    if trained.run is None or not isinstance(trained.run.objective, SequenceToSequence):
        raise ValueError(f"{trained.place} is no run on pairs of texts, so there is nothing to translate")
    objective, model, found = trained.run.objective, trained.model, trained.prepared(prepared)
    ids, language, how = objective.vocabulary, trained.language(prepared), BeamSearch(beams=beams)
    new = objective.lengths(trained.run.data.length)[1]
    said, sources, references = [], [], []
    for block, real in HeldOut(found.held_out, batch=batch, limit=rows):
        inputs = block[:, : objective.inputs]
        segments = (inputs != ids.pad).astype(np.int32)
        starts = np.full((batch, 1), ids.bos, np.int32)
        prompts = Prompts(starts, np.zeros(batch, np.int32), inputs, segments).placed(model.execution)
        best = search(model, prompts, new=new, end=ids.eos, how=how, pad=ids.pad)
        for texts, column in (
            (said, np.asarray(best.tokens)[:, 0]),
            (sources, inputs),
            (references, block[:, objective.inputs :]),
        ):
            texts += [language.decode(line) for line in column[real > 0].tolist()]
    return {
        "bleu": metric.corpus_score(said, [references]).score,
        "bleu_of_copying": metric.corpus_score(sources, [references]).score,
        "pairs": len(said),
        "signature": str(metric.get_signature()),
    }


def need_sacrebleu() -> Any:
    """The metric of the package sacrebleu.

    Raises:
        ValueError: if it is not installed.
    """
    try:
        from sacrebleu.metrics import BLEU
    except ImportError:
        raise ValueError("BLEU needs the package sacrebleu: the extra `bleu`") from None
    return BLEU()


def _perplexity(measured: dict[str, Any]) -> dict[str, float]:
    """The exponential of the loss; its error to first order."""
    value = math.exp(min(measured["loss"], 700.0))
    return {"perplexity": value, "perplexity_se": value * measured["loss_se"]}


def _tokens(
    source: TextFiles, language: Language, begin: int, after: list[int]
) -> tuple[Int32[np.ndarray, " tokens"], int]:
    """All documents one behind the other, each between `begin` and `after`; and the bytes of their text."""
    parts, octets = [], 0
    for document in source.documents():
        read = language.encode(document.text)
        parts.append(np.asarray([*([] if read[:1] == [begin] else [begin]), *read, *after], np.int32))
        octets += len(document.text.encode())
    if not octets:
        raise ValueError("there is no text in --data")
    return np.concatenate([*parts, np.asarray([begin], np.int32)]), octets


def _losses(model, rows: np.ndarray, objective: Causal, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Sum of losses and number of predictions of each row."""

    def blocks() -> Iterator[np.ndarray]:
        for start in range(0, len(rows), batch):
            block = rows[start : start + batch]
            filling = np.full((batch - len(block), rows.shape[1]), objective.bos, np.int32)  # predicts nothing
            told = row_losses(model, np.concatenate([block, filling]), np.zeros(batch, np.int32), objective=objective)
            yield np.stack(jax.device_get(told))[:, : len(block)].astype(np.float64)

    sums, counts = np.concatenate(list(blocks()), axis=1)
    return sums, counts
