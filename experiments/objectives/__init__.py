"""Objectives: rows to a sum of losses, and how many predictions it is over. `example` says what an objective is."""

from experiments.objectives.causal import Causal
from experiments.objectives.classification import Classification, ImageClassification
from experiments.objectives.contrastive import Comparison, Contrastive
from experiments.objectives.cross_entropy import cross_entropy
from experiments.objectives.denoising import Deletion, Denoising, Infilling, Permutation, Rotation
from experiments.objectives.example import Example, Gradable, Objective, PairExample, Sides, Sparing, row_keys
from experiments.objectives.masked import Masked
from experiments.objectives.prefixed import Prefixed
from experiments.objectives.replaced import ReplacedTokens
from experiments.objectives.sentences import Relation, SentencePairs
from experiments.objectives.sequence import SequenceToSequence
from experiments.objectives.spans import Mixture, SpanCorruption, ul2
from experiments.objectives.vocabulary import Vocabulary

AnyObjective = (
    Causal
    | Masked
    | SentencePairs
    | ReplacedTokens
    | Prefixed
    | SpanCorruption
    | Mixture
    | Denoising
    | SequenceToSequence
    | Classification
    | ImageClassification
    | Contrastive
)
"""The objectives that a run can name."""

__all__ = [
    "AnyObjective",
    "Causal",
    "Classification",
    "Comparison",
    "Contrastive",
    "Deletion",
    "Denoising",
    "Example",
    "Gradable",
    "ImageClassification",
    "Infilling",
    "Masked",
    "Mixture",
    "Objective",
    "PairExample",
    "Permutation",
    "Prefixed",
    "Relation",
    "ReplacedTokens",
    "Rotation",
    "SentencePairs",
    "SequenceToSequence",
    "Sides",
    "SpanCorruption",
    "Sparing",
    "Vocabulary",
    "cross_entropy",
    "row_keys",
    "ul2",
]
