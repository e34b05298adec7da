"""The interactive part of the report, in a real browser: its numbers, its keyboard, its looks."""

import io
import json
import re

import numpy as np
import pytest
from browser import Browser
from matplotlib.image import imread
from tables import curves_of, isoflop_table

from scaling import report
from scaling.approaches import conventions
from scaling.approaches.held_out import predict_held_out
from scaling.approaches.study import Approach, study
from scaling.figures import power_of_ten, short
from scaling.report import explorer

TABLE = isoflop_table().drop(columns="params_nonembedding")


pytestmark = pytest.mark.slow  # a minute of a browser


@pytest.fixture(scope="module")
def made():
    return study(TABLE, curves_of(TABLE), resamples=200)


@pytest.fixture(scope="module")
def other(made):
    """The same table under its other convention, C = 6ND."""
    _, convention = explorer.countings(made.frame, made.convention)
    assert convention.flops == "flops_6nd"
    return conventions.under(made, convention)


@pytest.fixture(scope="module")
def path(made, tmp_path_factory):
    file = tmp_path_factory.mktemp("report") / "report.html"
    return report.write(made, file, predict_held_out(made, TABLE), title="Explore")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    found = Browser(tmp_path_factory.mktemp("browser"))
    yield found
    found.close()


@pytest.fixture
def page(browser, path):
    browser.call("Emulation.setScriptExecutionDisabled", value=False)
    browser.prefers(color_scheme="light")
    browser.size(1000, 900)
    browser.open(path)
    return browser


def answers(page):
    """What the four cards say: the value and its interval."""
    found = page.read(
        "['n', 'd', 'ratio', 'loss'].map(q => document.getElementById('answer-' + q))"
        ".map(card => [card.querySelector('b').textContent, card.querySelector('small').textContent])"
    )
    return dict(zip(("n", "d", "ratio", "loss"), found, strict=True))


def type_budget(page, text):
    """Writes into the field and leaves it."""
    box = "document.getElementById('exact')"
    page.read(f"{box}.value = {json.dumps(text)}; {box}.dispatchEvent(new Event('change'))")


def number(text):
    """A number as the page writes it."""
    suffix = {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
    return float(text[:-1]) * suffix[text[-1]] if text[-1] in suffix else float(text)


def expected(found, approach, flops):
    """The same, straight from the study."""
    best = found.optima(flops)[approach]
    ratio = best.tokens.value / best.params.value
    said = {"n": (best.params, short), "d": (best.tokens, short), "loss": (best.loss, "{:.3f}".format)}
    said = {
        key: (show(each.value), f"95 %: {show(each.low)} to {show(each.high)}")
        for key, (each, show) in said.items()
        if each is not None
    }
    return said | {"ratio": (short(ratio), None)}


def test_the_page_is_silent_and_alone(page):
    assert page.complaints() == []
    assert page.read("document.getElementById('explore').hidden") is False
    assert page.read("document.querySelectorAll('#chart circle').length") > len(TABLE)


def test_complaints_are_heard(browser, tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<script>console.error('broken'); throw new Error('worse')</script><img src='http://localhost:9/x.png'>"
    )
    browser.open(bad)
    browser.read("new Promise(done => setTimeout(done, 300))")
    said = " ".join(browser.complaints())
    assert "broken" in said
    assert "worse" in said
    assert "asked the network" in said


@pytest.mark.parametrize("approach", list(Approach))
def test_numbers_equal_those_of_python(page, made, approach):
    page.read(f"document.querySelectorAll('#laws input')[{list(Approach).index(approach)}].click()")
    same, compared = 0, 0
    for flops in 10 ** np.random.default_rng(1).uniform(10.8, 15.8, 12):
        type_budget(page, f"{flops:.6g}")
        shown, wanted = answers(page), expected(made, approach, float(f"{flops:.6g}"))
        for key, (value, interval) in wanted.items():
            same += shown[key][0] == value
            compared += 1
            assert number(shown[key][0]) == pytest.approx(number(value), rel=2e-3 if key != "loss" else 4e-4)
            if interval:
                numbers = [re.findall(r"[\d.]+[kMBT]?(?=\s|$)", text[4:]) for text in (shown[key][1], interval)]
                assert len(numbers[0]) == len(numbers[1]) == 2
                for one, another in zip(*numbers, strict=True):
                    same += one == another
                    compared += 1
                    assert number(one) == pytest.approx(number(another), rel=6e-3 if key != "loss" else 1e-3)
    assert same / compared > 0.9


def test_slider_by_keyboard(page, made):
    page.read("document.getElementById('budget').focus()")
    before = page.read("Number(document.getElementById('budget').value)")
    first = answers(page)
    page.press(*["ArrowRight"] * 10)
    after = page.read("Number(document.getElementById('budget').value)")
    assert after == pytest.approx(before + 0.1, abs=1e-6)
    assert number(answers(page)["n"][0]) > number(first["n"][0])
    assert power_of_ten(10**after) in page.read("document.getElementById('budget').getAttribute('aria-valuetext')")
    assert page.read("document.getElementById('exact').value") == f"{10**after:.2e}".replace("+", "")
    page.press("Home")
    assert page.read("document.getElementById('reach').textContent").endswith(("smallest run.", "runs fitted."))
    page.press("End")
    assert "times the largest run: extrapolated" in page.read("document.getElementById('reach').textContent")
    assert page.complaints() == []


def test_tab_reaches_every_control_with_visible_focus(page):
    page.read("document.body.focus()")
    reached = {}
    for _ in range(60):
        page.press("Tab")
        name, outline = page.read(
            "(e => [e.name || e.id || e.tagName, getComputedStyle(e.closest('.chip') ? e.nextElementSibling : e)"
            ".outlineStyle])(document.activeElement)"
        )
        reached[name] = outline
    assert {"countings", "laws", "views", "budget", "exact", "chart-box", "published"} - set(reached) <= {"published"}
    assert all(outline != "none" for name, outline in reached.items() if name not in ("BODY", "HTML")), reached


def test_switches_by_keyboard(page, made, other):
    page.read("document.querySelector('#laws input:checked').focus()")
    flops = 3e12
    type_budget(page, "3e12")
    assert answers(page)["n"][0] == short(made.optimum(flops).params.value)
    page.press("ArrowLeft")
    assert answers(page)["n"][0] == short(made.optima(flops)[Approach.ISOFLOP].params.value)
    assert page.read("document.querySelector('#compare tr.chosen th').firstChild.textContent") == Approach.ISOFLOP.value
    page.press("ArrowRight")
    page.read("document.querySelector('#countings input:checked').focus()")
    page.press("ArrowRight")
    assert "6ND" in page.read("document.querySelector('#countings input:checked').parentNode.textContent")
    wanted = other.optima(flops)[Approach.PARAMETRIC]
    assert number(answers(page)["n"][0]) == pytest.approx(wanted.params.value, rel=3e-3)
    assert number(answers(page)["n"][0]) != pytest.approx(made.optimum(flops).params.value, rel=3e-3)
    for _ in range(5):
        page.read("document.querySelector('#views input:checked').focus()")
        page.press("ArrowRight")
        assert page.read("document.querySelectorAll('#chart circle').length") >= len(TABLE) - 1
    assert page.complaints() == []


def test_runs_are_read_by_arrow_keys(page, made):
    page.read("document.getElementById('chart-box').focus()")
    page.press("Home")
    first = made.frame.sort_values(["flops", "loss"], ascending=[True, False]).iloc[0]
    tip = page.read("document.getElementById('tip').textContent")
    assert str(first["run"]) in tip
    assert f"{first['loss']:.4f}" in tip
    assert short(first["params"]) in tip
    assert str(first["run"]) in page.read("document.getElementById('said').textContent")
    page.press("ArrowRight")
    assert page.read("document.getElementById('tip').textContent") != tip
    page.press("End")
    assert "held out" in page.read("document.getElementById('tip').textContent")
    page.press("Escape")
    assert page.read("document.getElementById('tip').hidden")


def test_pointing_at_a_run_reads_it(page):
    page.read("document.getElementById('chart').scrollIntoView({block: 'center'})")
    x, y = page.read(
        "(box => [box.x + box.width / 2, box.y + box.height / 2])"
        "(document.querySelector('#chart g circle').getBoundingClientRect())"
    )
    page.move(x, y)
    tip = page.read("document.getElementById('tip').textContent")
    assert re.match(r"r\d\dN", tip)
    page.move(x, y - 2000 if y > 2000 else 1)
    assert page.read("document.getElementById('tip').hidden")


@pytest.mark.parametrize("width", [380, 1000])
def test_what_is_said_of_a_run_does_not_cover_it(page, width):
    page.size(width, 900)
    page.read("document.getElementById('chart-box').focus()")
    page.press("Home")
    for _ in range(len(TABLE)):
        covered = page.read(
            "(() => { const ring = document.getElementById('ring').getBoundingClientRect(),"
            " tip = document.getElementById('tip').getBoundingClientRect(),"
            " x = ring.x + ring.width / 2, y = ring.y + ring.height / 2;"
            " return tip.left < x && x < tip.right && tip.top < y && y < tip.bottom; })()"
        )
        assert not covered
        page.press("ArrowRight")


@pytest.mark.parametrize(
    ("typed", "flops"),
    [("3e12", 3e12), ("3 x 10^12", 3e12), ("3×10^12 FLOPs", 3e12), ("2,000,000,000,000", 2e12), ("10^12", 1e12)],
)
def test_budgets_are_read_as_people_write_them(page, typed, flops):
    type_budget(page, typed)
    assert 10 ** page.read("Number(document.getElementById('budget').value)") == pytest.approx(flops, rel=0.02)
    kept = page.read("new URLSearchParams(location.hash.slice(1)).get('flops')")
    assert float(kept) == pytest.approx(flops, rel=1e-3)
    assert page.read("document.getElementById('wrong').textContent") == ""


def test_a_budget_that_is_none_is_refused_with_words(page):
    before = answers(page)
    for typed in ("much", "-3e20", "0", ""):
        type_budget(page, typed)
        assert "such as 5.8e23" in page.read("document.getElementById('wrong').textContent")
        assert page.read("document.getElementById('exact').getAttribute('aria-invalid')") == "true"
        assert answers(page) == before
    type_budget(page, "1e40")
    assert "Budgets here run from" in page.read("document.getElementById('wrong').textContent")


def test_an_address_brings_back_what_was_chosen(page, path, made):
    page.open(path, query="#counting=0&law=1&view=n&flops=2e12")
    assert answers(page)["n"][0] == short(made.optima(2e12)[Approach.ISOFLOP].params.value)
    assert page.read("document.querySelector('#views input:checked').value") == "n"
    page.open(path, query="#counting=9&law=77&view=nonsense&flops=abc")
    assert page.complaints() == []
    assert page.read("document.querySelector('#laws input:checked').value") == str(list(Approach).index(made.choice))


def test_without_scripts_figures_take_the_place_of_the_chart(page, path):
    page.call("Emulation.setScriptExecutionDisabled", value=True)
    page.call("Page.navigate", url=path.as_uri())
    page.call("Emulation.setScriptExecutionDisabled", value=False)
    text = path.read_text(encoding="utf-8")
    fallback = re.search(r"<noscript>(.*?)</noscript>", text, re.DOTALL)[1]
    assert fallback.count("<figure") == 3
    assert '<section id="explore" aria-labelledby="explore-title" hidden>' in text


@pytest.mark.parametrize("width", [380, 1400])
def test_nothing_is_wider_than_the_window(page, width):
    page.size(width, 900)
    assert page.read("document.documentElement.scrollWidth") <= width
    chart = page.read("document.querySelector('#chart > svg').getBoundingClientRect().width")
    assert chart <= width


_CONTRASTS = """
(() => {
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const linear = c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const behind = element => {
    for (let e = element; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      if (colour[3] !== 0) return colour;
    }
    return [255, 255, 255];
  };
  const found = {};
  for (const e of document.querySelectorAll('body *')) {
    if (!e.checkVisibility() || e.closest('.chip.off') || e.closest('svg')) continue;
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
    const [one, other] = [luminance(parse(getComputedStyle(e).color)), luminance(behind(e))];
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (ratio < 4.5) found[e.tagName + '.' + e.className + '#' + e.id] = ratio;
  }
  return found;
})()
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_both_themes(page, scheme):
    page.prefers(color_scheme=scheme)
    assert page.read(_CONTRASTS) == {}
    paper = page.read("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 28)"}[scheme]
    page.read("document.querySelector('h1').style.color = getComputedStyle(document.body).backgroundColor")
    assert list(page.read(_CONTRASTS)) == ["H1.#"]  # text that cannot be read is found


def test_figures_follow_the_theme(page):
    """The drawings are images: their pixels are looked at, since their styles are out of reach."""

    def corner():
        page.read("document.querySelector('figure img').scrollIntoView()")
        x, y = page.read("(box => [box.x, box.y])(document.querySelector('figure img').getBoundingClientRect())")
        picture = imread(io.BytesIO(page.picture(whole=False)))
        return [round(255 * float(c)) for c in picture[int(y) + 3, int(x) + 3, :3]]

    assert corner() == [255, 255, 255]
    page.prefers(color_scheme="dark")
    assert corner() == [20, 23, 28]


def test_print_is_light_and_whole(page):
    page.prefers(color_scheme="dark")
    page.call("Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert page.read("getComputedStyle(document.body).color") == "rgb(27, 31, 36)"
    assert page.read("getComputedStyle(document.getElementById('budget')).display") == "none"
    assert page.read("getComputedStyle(document.querySelector('.tall')).maxHeight") == "none"
    page.call("Emulation.setEmulatedMedia", media="", features=[])
