"""Public tables of runs: where each comes from, which of its columns are ours, and a copy on request.

A folder is looked in first, the one named by the environment variable SCALING_DATA, for `published/<file>`. Else a
table whose original is one file of a public repository is fetched from a pinned commit, checked against its hash, and
kept in the user's cache. Tables that were put together from many files are served from the folder alone.
"""

import hashlib
import os
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path

import pandas as pd

from scaling import runs

FOLDER = "SCALING_DATA"
"""The environment variable that names the folder which holds `published/`."""


class Rows(Enum):
    """Which rows of a published table."""

    FITTED = "fitted"
    """Those its authors fitted, or one of the ablations that should not be mixed."""
    ALL = "all"


@dataclass(frozen=True)
class Original:
    """One file of a public repository.

    Attributes:
        repository: owner/name on GitHub.
        commit: the full hash of a commit.
        path: of the file in it.
        sha256: of the file's bytes.
    """

    repository: str
    commit: str
    path: str
    sha256: str

    @property
    def url(self) -> str:
        """Where it is fetched from."""
        return f"https://raw.githubusercontent.com/{self.repository}/{self.commit}/{self.path}"


@dataclass(frozen=True)
class PublishedTable:
    """A public table of runs.

    Attributes:
        name: what `table` finds it by.
        file: its name in a local folder.
        text: what a row is, and what to know before fitting it.
        columns: our name -> the name in the file, or an expression of its names; counts come out in ones.
        where: the rows of `Rows.FITTED`.
        cluster: the column whose equal values are one training run, where a run has several rows: resample by it.
        original: the file in its public repository, where the table is one.
        licence: of the data.
        source: paper and repository.
    """

    name: str
    file: str
    text: str
    columns: Mapping[str, str] = field(hash=False)
    licence: str
    source: str
    where: str | None = None
    cluster: str | None = None
    original: Original | None = None

    def path(self) -> Path:
        """The file on this machine, fetched if need be.

        Raises:
            FileNotFoundError: in neither place; the message names both.
            ValueError: the file is there and is not the published one.
        """
        folder = os.environ.get(FOLDER)
        here = Path(folder) / "published" / self.file if folder else None
        if here and here.is_file():
            if self.original and hashlib.sha256(here.read_bytes()).hexdigest() != self.original.sha256:
                raise ValueError(
                    f"{here} is not the published table {self.name!r}: its SHA-256 differs; remove the file"
                )
            return here
        looked = f"no {here}" if here else f"{FOLDER} does not name a folder that holds published/{self.file}"
        if not self.original:
            raise FileNotFoundError(
                f"published table {self.name!r}: {looked}, and it cannot be fetched: it was put together from several "
                f"files ({self.source})"
            )
        return _fetch(self, looked)


def _fetch(entry: PublishedTable, looked: str) -> Path:
    try:
        import pooch
    except ImportError:
        raise FileNotFoundError(
            f"published table {entry.name!r}: {looked}, and fetching it needs pooch (pip install pooch)"
        ) from None
    try:
        return Path(
            pooch.retrieve(
                entry.original.url,
                known_hash=f"sha256:{entry.original.sha256}",
                fname=entry.file,
                path=pooch.os_cache("scaling-experiments"),
            )
        )
    except ValueError as error:
        raise ValueError(
            f"published table {entry.name!r}: {entry.original.url} is not the published file ({_brief(error)})"
        ) from None
    except OSError as error:
        raise FileNotFoundError(
            f"published table {entry.name!r}: {looked}, and {entry.original.url} cannot be fetched ({_brief(error)})"
        ) from None


def _brief(error: Exception) -> str:
    return textwrap.shorten(str(error), 100, placeholder=" ...") or type(error).__name__


_SAME = {name: name for name in ("params", "tokens", "loss")}
_TAO_TOKENS = "(0.00639222 * log(vocab_size)**2 - 0.15811069 * log(vocab_size) + 1.20470122)"

_ROUTING = PublishedTable(
    name="routing",
    file="routing_final_losses.csv",
    text="last loss of dense and routed models; fitted: dense and S-Base, every second block routed, k = 1",
    columns={
        "run": "hyper_id",
        "params": "total_parameter_count",
        "params_active": "dense_parameter_count",
        "experts": "num_experts",
        "width": "d_model",
        "layers": "num_blocks",
        "loss": "loss_validation",
    },
    where="k == 1 and routing_frequency == 0.5 and seed == 42 and router_type in ['Dense', 'S-Base']",
    licence="CC-BY-4.0",
    source="Clark et al. 2022, arXiv:2202.01169; google-deepmind/scaling_laws_for_routing",
)

_ENTRIES = (
    PublishedTable(
        name="chinchilla",
        file="chinchilla_points.csv",
        text="Hoffmann's 245 runs, read off a figure; tokens follow from 6ND; fitted without the 5 highest losses",
        columns={"params": "Model Size", "flops": "Training FLOP", "loss": "loss"},
        where="loss < 3.42",
        original=Original(
            "epoch-research/analyzing-chinchilla",
            "92258837425e1b5f2851d624287f0120583a3d0e",
            "data/svg_extracted_data.csv",
            "193478df4e90f040016431996c45682659306840ecdadf83cfb9cd5ca0aa1b30",
        ),
        licence="none stated",
        source="Besiroglu et al. 2024, arXiv:2404.10102; epoch-research/analyzing-chinchilla",
    ),
    PublishedTable(
        name="gemstones",
        file="gemstones_hot.jsonl",
        text="22 models over a grid of widths and depths at constant rate, ten checkpoints of each",
        columns={"run": "run_name", "params": "params_active_precise", "layers": "depth", "loss": "final_loss"},
        cluster="run",
        original=Original(
            "mcleish7/gemstone-scaling-laws",
            "5f420478f6057b0cbb4d13405fb10ca64675bccb",
            "wandb_dfs/wandb_df_for_fitting_hot.jsonl",
            "655467b59c99383403d6f73f5b7f23c02aea3f12935dc110382d8a8b43a0ff5d",
        ),
        licence="MIT",
        source="McLeish et al. 2025, arXiv:2502.06857; mcleish7/gemstone-scaling-laws",
    ),
    PublishedTable(
        name="vocabulary",
        file="vocabulary_points.csv",
        text="checkpoints of 60 runs, 6 sizes x 10 vocabularies; tokens by the paper's compression of characters",
        columns={
            "run": "Non_vocab_parameters * 1e6 + vocab_size",
            "vocab": "vocab_size",
            "width": "embed_dim",
            "params_nonembedding": "Non_vocab_parameters",
            "params_vocabulary": "vocab_size * embed_dim",
            "tokens": f"num_characters * {_TAO_TOKENS}",
            "flops": "FLOPs",
            "perplexity_ratio": "exp(Lossu)",
        },
        where="FLOPs >= 2.18e17",
        cluster="run",
        original=Original(
            "sail-sg/scaling-with-vocab",
            "6701cc202af8b075a46eef8e9d263b3f2ebe012c",
            "exp_data.csv",
            "6571e877469a44cb50b2d05e1fa485587369ee1c47941a4b3b2bfef80496f1b2",
        ),
        licence="none stated",
        source="Tao et al. 2024, arXiv:2407.13623; sail-sg/scaling-with-vocab",
    ),
    PublishedTable(
        name="step-law",
        file="step_law_dense.csv",
        text="dense models over grids of learning rate and batch, sequences of 2,048; smoothed final training loss",
        columns={
            "run": "exp_name",
            "params_nonembedding": "N",
            "tokens": "D",
            "learning_rate": "lr",
            "batch_tokens": "bs * 2048",
            "steps": "ti",
            "width": "h",
            "layers": "numl",
            "loss": "smooth loss",
        },
        original=Original(
            "step-law/steplaw",
            "32a8f4cc50247695fb56cc6c9117abdf67c97763",
            "data/dense_lr_bs_loss.csv",
            "9e46181076c04d450294d75dfe6f72adc416e231e154a07b337e378f9410002c",
        ),
        licence="none stated",
        source="Li et al. 2025, arXiv:2503.04715; step-law/steplaw",
    ),
    _ROUTING,
    replace(
        _ROUTING,
        name="routing-curves",
        file="routing_curves.csv.gz",
        text="losses of the same models every 10,000 steps",
        cluster="run",
        original=Original(
            "google-deepmind/scaling_laws_for_routing",
            "42da0c392b127df2c01fa7b705f72396050d05e5",
            "data/curves.csv.gz",
            "c03e7531add85e594f368d33bac4a0220280be858a7ed12d147cf73af6a3819f",
        ),
    ),
    PublishedTable(
        name="porian",
        file="porian_isoflop_points.csv",
        text="IsoFLOP points of 15 ablations; fitted: RefinedWeb, optimizer tuned, head counted",
        columns=_SAME | {"flops": "flops"},
        where="dataset == 'rw' and hparams == 'tuned' and param_count == 'standard'",
        licence="MIT",
        source="Porian et al. 2024, arXiv:2406.19146; formll/resolving-scaling-law-discrepancies",
    ),
    PublishedTable(
        name="gadre",
        file="gadre_104_models.csv",
        text="104 over-trained models on three corpora; loss is that on C4; fitted: trained on RedPajama",
        columns={
            "run": "name",
            "params": "params",
            "params_nonembedding": "params_no_embed",
            "tokens": "tokens",
            "learning_rate": "lr",
            "loss": "loss_c4_val",
            "loss_se": "(loss_hi95_c4_val - loss_lo95_c4_val) / 3.92",
        },
        where="dataset == 'rpj'",
        licence="MIT",
        source="Gadre et al. 2024, arXiv:2403.08540; mlfoundations/scaling",
    ),
    PublishedTable(
        name="data-constrained",
        file="data_constrained_182.csv",
        text="runs of 1 to 500 epochs, with seeds",
        columns=_SAME | {"unique_tokens": "unique_tokens"},
        licence="Apache-2.0",
        source="Muennighoff et al. 2023, arXiv:2305.16264; huggingface/datablations",
    ),
    PublishedTable(
        name="multi-power",
        file="multipower_loss_curves.csv",
        text="loss curves under nine learning-rate schedules, warm-up of 2,160 steps cut off; fitted: the 100M model",
        columns={"run": "schedule", "loss": "loss"},
        where="size == '100M'",
        cluster="run",
        licence="MIT",
        source="Luo et al. 2025, arXiv:2503.12811; thu-yao-01-luo/MultiPowerLaw",
    ),
    PublishedTable(
        name="olmo-ladder",
        file="olmo_ladder_final.csv",
        text="five sizes at 0.5 to 10 times Chinchilla's tokens, one rerun of each size; loss is that on C4",
        columns={
            "params": "params",
            "tokens": "throughput/total_tokens",
            "batch_tokens": "batch_size_in_tokens",
            "steps": "step",
            "loss": "eval/c4_en-validation/CrossEntropyLoss",
            "task_loss": "eval/downstream_bpb/hellaswag_val_rc_5shot_bpb",
        },
        licence="Apache-2.0",
        source="Bhagia et al. 2024, arXiv:2412.04403; allenai/OLMo-ladder",
    ),
    PublishedTable(
        name="marin",
        file="marin_isoflop_nemotron.csv",
        text="IsoFLOP runs with exact FLOPs; macro loss over Paloma; fitted without the optima trained as a check",
        columns={
            "run": "Name",
            "params": "parameter_count",
            "tokens": "throughput/total_tokens",
            "flops": "`throughput/total_gflops` * 1e9",
            "steps": "trainer.num_train_steps",
            "width": "model.hidden_dim",
            "layers": "model.num_layers",
            "loss": "eval/paloma/macro_loss",
        },
        where="not Name.str.contains('validation-optimal')",
        licence="Apache-2.0",
        source="marin-community/marin, IsoFLOP sweep on Nemotron",
    ),
)

TABLES: dict[str, PublishedTable] = {entry.name: entry for entry in _ENTRIES}
"""Every public table by name."""


def table(name: str, *, rows: Rows = Rows.FITTED) -> pd.DataFrame:
    """A public table of runs in our columns, the file's own beside them.

    Args:
        name: one of `TABLES`.
        rows: those the authors fitted, or all.

    Raises:
        ValueError: no such table, or the file found is not it.
        FileNotFoundError: neither in the folder that SCALING_DATA names nor to be fetched.
    """
    if name not in TABLES:
        raise ValueError(f"no published table {name!r}" + runs.nearest(name, TABLES))
    entry = TABLES[name]
    return runs.read(entry.path(), columns=entry.columns, where=entry.where if rows is Rows.FITTED else None)
