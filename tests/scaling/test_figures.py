"""Figures: what they show is where it should be, and can be told apart without hue."""

import subprocess
import sys
from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from tables import TRUTH, curves_of, isoflop_table

from scaling import figures, published
from scaling.approaches.held_out import predict_held_out
from scaling.approaches.study import study
from scaling.certainty.profile import profiles
from scaling.decisions.audit import Audit
from scaling.decisions.drift import Drift
from scaling.estimate import Estimate
from scaling.figures import axes as drawing
from scaling.figures import beside
from scaling.fitting.fit import fit

TABLE = isoflop_table()


@pytest.fixture(scope="module")
def made():
    return study(TABLE, curves_of(TABLE), resamples=60)


@pytest.fixture(scope="module")
def wide():
    """160 runs over six orders of magnitude of compute, as public tables have them, without budgets."""
    generator = np.random.default_rng(3)
    params, ratio = 10 ** generator.uniform(7, 10.3, 160), 10 ** generator.uniform(0.3, 2.6, 160)
    tokens = params * ratio
    loss = 1.8 + 480 * params**-0.35 + 2100 * tokens**-0.37
    frame = pd.DataFrame({"params": params, "tokens": tokens, "loss": loss * np.exp(0.01 * generator.normal(size=160))})
    return study(frame, resamples=40)


def lightness(colour):
    """CIE L*, from the definition: sRGB to linear light, luminance, cube root."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    y = float(np.dot([0.2126, 0.7152, 0.0722], linear))
    return 116 * np.cbrt(y) - 16 if y > 0.008856 else 903.3 * y


def contrast(one, other):
    """Of WCAG: (lighter + 0.05) / (darker + 0.05) in luminance."""
    y = [((lightness(colour) + 16) / 116) ** 3 for colour in (one, other)]
    return (max(y) + 0.05) / (min(y) + 0.05)


def told_apart(colours):
    """Least distance in lightness between any two."""
    return min(abs(lightness(one) - lightness(other)) for one, other in combinations(colours, 2))


@pytest.mark.parametrize("theme", [figures.LIGHT, figures.DARK])
def test_approaches_differ_in_lightness_and_all_stands_out_from_the_paper(theme):
    assert told_apart(theme.approaches) > 10
    for colour in (theme.ink, theme.accent, theme.soft, *theme.approaches):
        assert contrast(colour, theme.paper) > 3
    assert contrast(theme.ink, theme.paper) > 7
    steps = np.diff([lightness(colour) for colour in theme.colours])
    assert np.all(steps > 0)
    assert steps.max() < 3 * steps.min()
    assert told_apart([theme.colours[0], theme.paper, theme.faint]) > 3


def test_colours_of_equal_lightness_are_found():
    assert told_apart(["#0072b2", "#b3568a", "#007a5a"]) < 10  # three hues that turn to one grey


def test_styles_differ_in_shape_too(made):
    (axes, _) = figures.optimal_sizes(made).axes[:2]
    dashes = {
        str(line.get_linestyle()) + str(line._unscaled_dash_pattern) for line in axes.lines if " = " in line.get_label()
    }
    assert len(dashes) == 3
    markers = [line.get_marker() for line in axes.lines if line.get_label() in ("parabola minima", "envelope", "runs")]
    assert len(set(markers)) >= 2


@pytest.mark.parametrize("which", ["made", "wide"])
def test_labels_name_units_and_ticks_do_not_overlap(which, request):
    found = request.getfixturevalue(which)
    held = predict_held_out(found, TABLE) if which == "made" else ()
    for name, figure in figures.draw(found, held, beside=beside.named(["Hoffmann", "Besiroglu"])).items():
        figure.canvas.draw()
        for axes in figure.axes:
            for axis in (axes.xaxis, axes.yaxis):
                shown = [tick.label1 for tick in axis.get_major_ticks() if tick.label1.get_text()]
                boxes = [text.get_window_extent() for text in shown if text.get_visible()]
                assert not any(one.overlaps(other) for one, other in pairwise(boxes)), name
                assert not [tick for tick in axis.get_minor_ticks() if tick.label1.get_text()]
        said = " ".join(axes.get_xlabel() + axes.get_ylabel() for axes in figure.axes)
        expected = ("nats per token", "FLOPs", "per cent", "objective", "approach 2 needs")
        said += " ".join(text.get_text() for axes in figure.axes for text in axes.texts)
        assert any(each in said for each in expected), name


def test_contours_lie_on_the_law_and_turn_at_the_optimum(made):
    axes = figures.iso_loss(made).axes[0]
    (contours,) = [each for each in axes.collections if hasattr(each, "levels")]
    parameters, cost = made.parametric.bootstrap.fit.parameters, made.cost
    checked = 0
    for level, path in zip(contours.levels, contours.get_paths(), strict=True):
        if not len(path.vertices):
            continue
        flops, params = path.vertices.T
        tokens = flops / (cost.k * params**cost.g)
        p = parameters
        loss = p["E"] + p["A"] * params ** -p["alpha"] + p["B"] * tokens ** -p["beta"]
        np.testing.assert_allclose(loss, level, rtol=2e-3)
        cheapest = int(np.argmin(flops))
        inside = flops[cheapest] > 1.05 * axes.get_xlim()[0]
        if inside:  # the contour's leftmost point is in view: there the loss is reached with the least compute
            assert params[cheapest] == pytest.approx(made.optimum(flops[cheapest]).params.value, rel=0.15)
            checked += 1
    assert checked >= 3


def test_published_laws_are_drawn_at_their_optimum(wide):
    figure = figures.optimal_sizes(wide, beside=beside.named(["Hoffmann"]))
    (line,) = [line for line in figure.axes[0].lines if line.get_label() == "Hoffmann"]
    p = published.law("Hoffmann").parameters
    flops = np.asarray(line.get_xdata())
    scale = (p["alpha"] * p["A"] / (p["beta"] * p["B"])) ** (1 / (p["alpha"] + p["beta"]))  # Hoffmann et al., eq. 4
    expected = scale * (flops / 6) ** (p["beta"] / (p["alpha"] + p["beta"]))
    np.testing.assert_allclose(line.get_ydata(), expected, rtol=1e-6)
    with pytest.raises(ValueError, match="did you mean 'Hoffmann'"):
        beside.named(["Hofmann"])
    with pytest.raises(ValueError, match="at most 4"):
        beside.named([each.name for each in beside.with_optimum()][:5])


def test_large_tables_are_thinned_aloud_and_the_same_every_time():
    rows = drawing.selection(100_000)
    assert len(rows) == drawing.MOST_POINTS == len(set(rows))
    assert np.array_equal(rows, drawing.selection(100_000))
    assert np.array_equal(drawing.selection(1745), np.arange(1745))
    _, axes = drawing.blank(4, 3)
    x = np.geomspace(1, 1e6, 5000)
    drawing.scatter(axes, x, x, x, figures.LIGHT)
    assert len(axes.collections[0].get_offsets()) == drawing.MOST_POINTS
    assert "2,000 of 5,000 runs drawn" in [text.get_text() for text in axes.texts]


def test_residuals_beyond_the_figure_are_marked_and_the_right_law_leaves_no_trend(wide):
    fit_, rows = wide.parametric.bootstrap.fit, len(wide.frame)
    figure = figures.residuals(wide)
    (median,) = [line for line in figure.axes[0].lines if line.get_label() == "median"]
    assert np.abs(median.get_ydata()).max() < 1.5  # per cent, of 1 % noise
    far = replace(fit_, residuals=np.where(np.arange(rows) < 3, 0.5, fit_.residuals))
    boot = replace(wide.parametric.bootstrap, fit=far)
    marked = figures.residuals(replace(wide, parametric=replace(wide.parametric, bootstrap=boot)))
    assert "beyond the figure (3)" in [text.get_text() for text in marked.legends[0].get_texts()]


def test_profiles_end_where_the_interval_does_and_open_sides_are_said():
    found = fit(TABLE[TABLE["role"] == "sweep"], "chinchilla")
    profile = profiles(found, ["alpha"])[0]
    axes = figures.profiles([profile]).axes[0]
    (line,) = [line for line in axes.lines if len(line.get_xdata()) > 5]
    at_ends = np.interp(profile.interval, line.get_xdata(), line.get_ydata())
    np.testing.assert_allclose(at_ends, 1, atol=0.05)
    assert not [text for text in axes.texts if "open" in text.get_text()]
    one_ratio = TABLE[TABLE["role"] == "sweep"].assign(tokens=lambda t: 20 * t["params"]).drop(columns="flops")
    open_sided = profiles(fit(one_ratio, "chinchilla"), ["alpha"])[0]
    assert open_sided.open_low or open_sided.open_high
    assert [text for text in figures.profiles([open_sided]).axes[0].texts if "open" in text.get_text()]
    with pytest.raises(ValueError, match="no profiles"):
        figures.profiles([])


def test_missing_approaches_are_said_in_their_figure():
    few = TABLE[TABLE["params"] > 3e4].assign(role="sweep").reset_index(drop=True)
    found = study(few, resamples=40)
    assert found.missing
    drawn = figures.draw(found)
    for approach, name in (("ISOFLOP", "isoflop_parabolas"), ("PARAMETRIC", "iso_loss")):
        reasons = [why for key, why in found.missing.items() if key.name == approach]
        texts = " ".join(text.get_text() for axes in drawn[name].axes for text in axes.texts)
        assert all(why.split()[0] in texts for why in reasons)


def test_files_are_of_their_format_and_the_same_every_time(made, tmp_path, monkeypatch):
    kinds = (figures.Format.PNG, figures.Format.SVG, figures.Format.PDF)
    starts = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    figure = figures.isoflop_parabolas(made)
    for kind in kinds:
        data = figures.render(figure, kind)
        assert data.startswith(starts[kind.value])
        assert data == figures.render(figures.isoflop_parabolas(made), kind)
    monkeypatch.setattr(figures, "FIGURES", {"isoflop_parabolas": figures.isoflop_parabolas})
    written = figures.save(made, tmp_path / "new", formats=[figures.Format.PDF], further={"again": figure})
    assert {path.name for path in written} == {"isoflop_parabolas.pdf", "again.pdf"}
    assert {path.name for path in (tmp_path / "new").iterdir()} == {path.name for path in written}
    with pytest.raises(ValueError):
        figures.render(figure, "bmp")


def test_counts_are_short():
    values = (950, 12_345, 3.4e6, 7e10, 1.4e12, 999_700, 2.3e15)
    assert [*map(figures.short, values)] == ["950", "12.3k", "3.4M", "70B", "1.4T", "1M", "2.3×10¹⁵"]
    assert figures.power_of_ten(8.04e11) == "8×10¹¹"
    assert figures.power_of_ten(1e-3) == "10⁻³"


def test_importing_figures_leaves_the_global_state_of_matplotlib_alone():
    code = "import matplotlib, scaling.figures, sys; assert 'matplotlib.pyplot' not in sys.modules; print('clean')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "clean", done.stderr


def test_truth_lies_in_the_band_of_the_optimal_loss(made):
    """The band drawn about the compute-optimal loss holds the law the table was made from."""
    axes = figures.loss_against_compute(made).axes[0]
    (band,) = [each for each in axes.collections if type(each).__name__ == "FillBetweenPolyCollection"]
    vertices = band.get_paths()[0].vertices
    flops = 3.2e11
    near = vertices[np.abs(np.log(vertices[:, 0] / flops)) < 0.05]
    sizes = np.geomspace(1e3, 1e6, 4000)
    tokens = flops / (10 * sizes**0.974)
    p = TRUTH
    lowest = float((p["E"] + p["A"] * sizes ** -p["alpha"] + p["B"] * tokens ** -p["beta"]).min())
    assert near[:, 1].min() * 0.99 < lowest < near[:, 1].max() * 1.01


def test_drift_marks_what_moves():
    below = (Estimate(0.60, 0.58, 0.62), Estimate(0.57, 0.55, 0.59), Estimate(0.51, 0.50, 0.52))
    still = (Estimate(0.35, 0.30, 0.40), Estimate(0.36, 0.33, 0.39), Estimate(0.35, 0.34, 0.36))
    cutoffs = (1e20, 1e21, np.inf)
    drifts = tuple(
        Drift(quantity=name, cutoffs=cutoffs, estimates=values, worst=0, z=z, chance=chance)
        for name, values, z, chance in (("a", below, 6.0, 1e-4), ("alpha", still, 0.3, 0.8))
    )
    audit = object.__new__(Audit)
    object.__setattr__(audit, "drifts", drifts)
    figure = figures.exponent_drift(audit)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["a: drifts", "alpha: holds"]
    markers = [axes.containers[0].lines[0].get_marker() for axes in figure.axes]
    assert markers[0] != markers[1]
    object.__setattr__(audit, "drifts", ())
    assert "no drift" in figures.exponent_drift(audit).axes[0].texts[0].get_text()
