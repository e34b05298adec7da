"""Published laws as data, each with its source, to draw beside one's own and to test against."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from scaling import laws
from scaling.laws import Law
from scaling.runs import nearest

PETAFLOP_DAY = 1e15 * 86400
"""FLOPs in Kaplan's unit of compute."""


@dataclass(frozen=True)
class PublishedLaw:
    """A law with the constants of a paper.

    Attributes:
        name: short name for a legend.
        law: the form.
        parameters: the constants.
        convention: what N and C count in that paper.
        source: paper and equation or table.
    """

    name: str
    law: Law
    parameters: Mapping[str, float] = field(hash=False)
    convention: str
    source: str

    def __call__(self, **columns):
        """What the law predicts, its `law.target`; for losses nats per token."""
        return self.law(columns, self.parameters)


_TOTAL = "N all parameters, C = 6ND"
_NONEMBEDDING = "N without embeddings, C = 6ND"


def _hoffmann() -> tuple[PublishedLaw, ...]:
    paper = "Hoffmann et al. 2022, arXiv:2203.15556"
    return (
        PublishedLaw(
            "Hoffmann",
            laws.CHINCHILLA,
            {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28},
            _TOTAL,
            f"{paper}, eq. 10",
        ),
        PublishedLaw(
            "Hoffmann, unrounded",
            laws.CHINCHILLA,
            {
                **{"E": math.exp(0.5267228), "A": math.exp(6.0073404), "B": math.exp(6.0179186)},
                **{"alpha": 0.33917084, "beta": 0.2849083},
            },
            _TOTAL,
            f"{paper}, digits of its LaTeX source (Besiroglu et al. 2024, arXiv:2404.10102)",
        ),
        PublishedLaw(
            "Besiroglu",
            laws.CHINCHILLA,
            {"E": 1.8169, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658},
            _TOTAL,
            "Besiroglu et al. 2024, arXiv:2404.10102, table 1",
        ),
    )


def _kaplan() -> tuple[PublishedLaw, ...]:
    paper = "Kaplan et al. 2020, arXiv:2001.08361"

    def of(name: str, law: Law, parameters: dict[str, float], where: str) -> PublishedLaw:
        return PublishedLaw(f"Kaplan {name}", law, parameters, _NONEMBEDDING, f"{paper}, {where}")

    return (
        of("L(N)", laws.KAPLAN_N, {"N_c": 8.8e13, "alpha_N": 0.076}, "eq. 1.1"),
        of("L(D)", laws.KAPLAN_D, {"D_c": 5.4e13, "alpha_D": 0.095}, "eq. 1.2"),
        of(
            "L(C)",
            laws.KAPLAN_C,
            {"C_c": 1.6e7 * PETAFLOP_DAY, "alpha_C": 0.057},
            "section 3.3; C_c = 1.6e7 PF-days",
        ),
        of(
            "L(C_min)",
            laws.kaplan.KAPLAN_CMIN,
            {"C_c": 3.1e8 * PETAFLOP_DAY, "alpha_C": 0.050},
            "eq. 1.3; C_c = 3.1e8 PF-days",
        ),
        of(
            "L(N, D)",
            laws.KAPLAN_ND,
            {"N_c": 6.4e13, "D_c": 1.8e13, "alpha_N": 0.076, "alpha_D": 0.103},
            "eq. 1.5 and table 2",
        ),
        of(
            "L(N, S)",
            laws.kaplan.KAPLAN_NS,
            {"N_c": 6.5e13, "S_c": 2.1e3, "alpha_N": 0.077, "alpha_S": 0.76},
            "eq. 1.6 and table 3",
        ),
        of("B_crit(L)", laws.kaplan.KAPLAN_BATCH, {"B_star": 2e8, "alpha_B": 0.21}, "eq. 1.4"),
    )


def _muennighoff() -> tuple[PublishedLaw, ...]:
    # Fitted as logarithms, with alpha = beta; the paper prints 521, 1488, 1.87 and 0.353.
    fitted = {"E": math.exp(0.6254804), "A": math.exp(6.255414), "B": math.exp(7.3049974), "alpha": 0.3526596}
    source = "Muennighoff et al. 2023, arXiv:2305.16264, appendix A; digits from the notebook of its repository"
    repeated = fitted | {"beta": 0.3526596, "R_N": 5.309743, "R_D": 15.387756}
    return (
        PublishedLaw("Muennighoff, one epoch", laws.chinchilla.TIED, fitted, _TOTAL, source),
        PublishedLaw("Muennighoff", laws.repetition.DATA_CONSTRAINED, repeated, _TOTAL, source),
    )


def _experts() -> tuple[PublishedLaw, ...]:
    clark, active = "Clark et al. 2022, arXiv:2202.01169, table 3", "N parameters used per token"
    names = ("a", "b", "c", "d", "E_start", "E_max")
    routers = {
        "S-Base": (-0.082, -0.108, 0.009, 1.104, 1.847, 314.478),
        "RL-R": (-0.083, -0.126, 0.012, 1.111, 1.880, 469.982),
        "Hash": (-0.087, -0.136, 0.012, 1.157, 4.175, 477.741),
    }
    krajewski = "Krajewski et al. 2024, arXiv:2402.07871, table 1"
    return (
        *(
            PublishedLaw(f"Clark {router}", laws.experts.ROUTED, dict(zip(names, values, strict=True)), active, clark)
            for router, values in routers.items()
        ),
        PublishedLaw("Clark, dense", laws.KAPLAN_N, {"N_c": 3.568e13, "alpha_N": 0.078}, active, clark),
        PublishedLaw(
            "Krajewski",
            laws.experts.FINE_GRAINED,
            {"c": 0.47, "a": 18.1, "b": 30.8, "g": 2.1, "alpha": 0.115, "beta": 0.147, "gamma": 0.58},
            "N all non-embedding parameters, every expert counted, at an expansion rate of 64",
            krajewski,
        ),
        PublishedLaw(
            "Krajewski, dense",
            laws.CHINCHILLA,
            {"E": 0.47, "A": 16.3, "B": 26.7, "alpha": 0.126, "beta": 0.127},
            "N without embeddings",
            krajewski,
        ),
    )


def _kumar() -> tuple[PublishedLaw, ...]:
    source = "Kumar et al. 2024, arXiv:2411.04330, appendix K, table 2"
    return (
        PublishedLaw(
            "Kumar, training",
            laws.precision.SHIFTED_PRECISION,
            {
                **{"E": 2.7648, "A": 4.299e3, "B": 1.806e4, "alpha": 0.4965, "beta": 0.4965},
                **{"gamma_w": 2.6745, "gamma_a": 2.2102, "gamma_kv": 0.9578},
                **{"n_w": 0.3037, "n_a": 1.4072, "n_kv": 2.4185},
            },
            "N without embeddings",
            f"{source}; n taken with the sign that gives the paper's 7 to 8 optimal bits, which it leaves open",
        ),
        PublishedLaw(
            "Kumar, after training",
            laws.precision.POST_TRAINING_PRECISION,
            {"C_T": 0.0598, "gamma_D": 0.5068, "gamma_N": 0.3439, "gamma_post": 0.5907},
            "N without embeddings",
            f"{source}; its further constant b = 1.1277, a factor of e^b on C_T or on 1 / C_T, is left out",
        ),
    )


def _tao() -> PublishedLaw:
    # The repository counts parameters in millions and tokens in billions.
    alpha_1, alpha_2 = 0.44660634152009615, 0.6707374679896795
    return PublishedLaw(
        "Tao",
        laws.vocabulary.VOCABULARY,
        {
            "E": 5.5327846803337435,
            "A_1": 1.8313851559554126 * 1e6**alpha_1,
            "A_2": 0.19584238398665638 * 1e6**alpha_2,
            "B": 2.1241123120064955 * 1e9**alpha_1,
            "alpha_1": alpha_1,
            "alpha_2": alpha_2,
            "beta": alpha_1,
        },
        "N_nv without vocabulary, N_v = vocabulary x width; D is what the repository's code makes of characters, their "
        "compression at a thousandth of the vocabulary: 2.7 to 3 times the tokens",
        "Tao et al. 2024, arXiv:2407.13623, approach 3; constants of its repository, in units of one",
    )


def _hyperparameters() -> tuple[PublishedLaw, ...]:
    deepseek, step = "DeepSeek LLM 2024, arXiv:2401.02954, eq. 1", "Li et al. 2025, arXiv:2503.04715, eq. 1"
    compute, size = "C = MD, M FLOPs per token without embeddings", "N without embeddings"
    of = laws.hyperparameters
    return (
        PublishedLaw("DeepSeek rate", of.DEEPSEEK_RATE, {"c": 0.3118, "gamma": 0.1250}, compute, deepseek),
        PublishedLaw("DeepSeek batch", of.DEEPSEEK_BATCH, {"c": 0.2920, "gamma": 0.3271}, compute, deepseek),
        PublishedLaw("Step Law rate", of.STEP_RATE, {"c": 1.79, "gamma_N": 0.713, "gamma_D": 0.307}, size, step),
        PublishedLaw("Step Law batch", of.STEP_BATCH, {"c": 0.58, "gamma": 0.571}, size, step),
    )


def _gemstones() -> tuple[PublishedLaw, ...]:
    source = "McLeish et al. 2025, arXiv:2502.06857, fits of its repository (constant rate, delta 1e-4)"
    return (
        PublishedLaw(
            "Gemstones",
            laws.CHINCHILLA,
            {
                **{"E": math.exp(0.7663168139), "A": math.exp(5.4574988414), "B": math.exp(14.9719740349)},
                **{"alpha": 0.2989180518, "beta": 0.6928331414},
            },
            _TOTAL,
            source,
        ),
        PublishedLaw(
            "Gemstones, shape",
            laws.shape.SHAPE_AND_SIZE,
            {
                **{"E": math.exp(0.39245797), "A": math.exp(1.4520106404), "B": math.exp(-0.0781020281)},
                **{"G": math.exp(7.9700333376), "C": math.exp(10.0594263846)},
                **{"alpha": 0.2446914313, "beta": 0.3871516764, "delta": 0.5000838843, "gamma": 0.4761055541},
            },
            _TOTAL,
            source,
        ),
    )


def _multi_power() -> tuple[PublishedLaw, ...]:
    names = ("L_0", "A", "alpha", "B", "C", "beta", "gamma")
    fits = {
        "25M": (3.04045406, 0.52468604, 0.50786857, 363.78751622, 2.06560812, 0.58279013, 0.64142257),
        "100M": (2.6514477, 0.60115152, 0.45295811, 437.9464276, 2.13245612, 0.59785199, 0.65523644),
        "400M": (2.37474466, 0.65421216, 0.42878731, 523.42464371, 2.02462735, 0.59350493, 0.63472457),
    }
    peak = 3e-4
    published = []
    for size, values in fits.items():
        constants = dict(zip(names, values, strict=True))
        # Its code counts the rise of the warm-up as a negative drop, which soon adds B x peak for good.
        constants["L_0"] += constants["B"] * peak
        published.append(
            PublishedLaw(
                f"Multi-Power {size}",
                laws.schedule.MULTI_POWER,
                constants,
                "S_1 from the first step, drops from the end of warm-up, peak rate 3e-4",
                "Luo et al. 2025, arXiv:2503.12811, constants of its repository; L_0 with B x peak added",
            )
        )
    return tuple(published)


LAWS: tuple[PublishedLaw, ...] = (
    *_hoffmann(),
    *_kaplan(),
    *_muennighoff(),
    *_experts(),
    *_kumar(),
    _tao(),
    *_hyperparameters(),
    *_gemstones(),
    *_multi_power(),
)
"""Every published law, in the order of a legend."""


def law(name: str) -> PublishedLaw:
    """A published law by name.

    Raises:
        ValueError: no such law; the message offers the nearest.
    """
    known = {each.name: each for each in LAWS}
    if name not in known:
        raise ValueError(f"no published law {name!r}" + nearest(name, known))
    return known[name]
