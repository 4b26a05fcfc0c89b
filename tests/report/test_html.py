"""The report: numbers as given, model text escaped and masked, nothing fetched from outside.

Of: report/figures.py, report/masking.py, report/plots.py
"""

import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

import efface
from efface.evaluation.comparison import ratio_ci
from efface.evaluation.settings import OrdinaryText, RunSettings
from efface.generation.decoding import Decoding
from efface.methods.repo import REPOConfig, REPOTrainer
from efface.report import Drawing
from efface.report.figures import Drawn, Findings, draw
from efface.report.html import TRAINING_KEYS, TRAINING_PREFIXES, TRAINING_ROWS, write_report
from efface.report.masking import BULLET, mask, mask_or_withhold
from efface.report.plots import BCE, keys_starting, series

VOID = {"meta", "img", "br", "link", "input", "hr"}
BAD = {"rotten", "vile"}
COLOURS = {"grey": (138, 144, 153), "blue": (0, 114, 178), "orange": (200, 80, 10), "green": (0, 128, 95)}


def score_words(texts):
    """A scorer for tests: 0.9 for the two words that stand for offensive ones."""
    return [0.9 if text.lower() in BAD else 0.1 for text in texts]


STEPS = 16
PROMPTS = [
    "The weather in the old town",
    "You",
    "She went to the market and bought bread",
    "He is an",
    "They said",
    "There is",
]
TEXT = ["The history of the town is the history of its river and its people."] * 3
EXAMPLES = [
    {
        "prompt": "The <b>day</b> was",
        "base": " rotten and Vile! <script>alert(1)</script>",
        "base_score": 0.93,
        "edited": " long & warm",
        "edited_score": 0.04,
    }
]
SETTINGS = {
    "method": "repo",
    "model": "tiny",
    "pairs": "toy.jsonl",
    "training": {"learning_rate": 5e-5, "layers": [8, 29]},
    "command": "efface demo --seed 7",
}


def evaluated(model, scorer="stubs:quarters", **others):
    return efface.evaluate(
        model,
        PROMPTS,
        processing_class=tiny_tokenizer(),
        scorer=scorer,
        decoding=Decoding(samples=4, seed=7),
        text=OrdinaryText(TEXT),
        run=RunSettings(command="efface evaluate tiny"),
        **others,
    )


@pytest.fixture(scope="module")
def both():
    """What `efface evaluate` finds of two tiny models: the one before and the one after, as the demo measures them."""
    model, other = tiny_model("gpt2", seed=1), tiny_model("llama", seed=1)
    with torch.no_grad():
        other.get_output_embeddings().weight.mul_(1.5)  # it now repeats itself a little
    base = evaluated(model, reference=model)
    return base, evaluated(other, reference=model, baseline=base)


@pytest.fixture(scope="module")
def base(both):
    return both[0].to_dict()


@pytest.fixture(scope="module")
def edited(both):
    return both[1].to_dict()


@pytest.fixture(scope="module")
def comparison(both):
    return compared(*both)


@pytest.fixture(scope="module")
def clean():
    """Of a model none of whose continuations is toxic."""
    return evaluated(tiny_model("gpt2"), scorer="stubs:Never")


def compared(base, edited):
    found = ratio_ci(edited.scores, base.scores)
    return {
        "share_ratio": found.ratio,
        "share_ratio_ci95": [found.lower, found.upper],
        "perplexity_change": edited.perplexity.value / base.perplexity.value - 1,
    }


class Page(HTMLParser):
    """Parses a page, fails on tags that do not nest, and keeps what the tests ask about."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts, self.cells = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if "td" in self.open or "th" in self.open:
            self.cells[-1] += data

    @property
    def text(self):
        return " ".join("".join(self.texts).split())


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    """What a trainer logs, and not what a test takes it for: of REPO on a tiny model."""
    rows = [
        {"prompt": f"The town number {i}", "chosen": f" has {i} rivers", "rejected": f" has {i} silly fools"}
        for i in range(8)
    ]
    settings = REPOConfig(
        output_dir=str(tmp_path_factory.mktemp("training")),
        max_steps=STEPS,
        per_device_train_batch_size=2,
        logging_steps=1,
        erase_layers="all",
        use_cpu=True,
        discriminator_width=16,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = REPOTrainer(
        tiny_model("gpt2"),
        settings,
        rows,
        processing_class=tiny_tokenizer(),
        retain_text=["The history of the town is long."] * 4,
    )
    trainer.train()
    return trainer.state.log_history


@pytest.fixture(scope="module")
def figure_path(tmp_path_factory, base, edited, history):
    (figure,) = draw(Findings(base, edited, history), tmp_path_factory.mktemp("figure"))
    return figure.path


@pytest.fixture
def report(tmp_path, figure_path, base, edited, comparison, history):
    def write(**changes):
        path = tmp_path / "report.html"
        arguments = {
            "title": "Demo <of> efface",
            "base": base,
            "edited": edited,
            "history": history,
            "figures": [Drawn(figure_path, "Only `efface analyze` <shows> it.", "Bars")],
            "comparison": comparison,
            "examples": EXAMPLES,
            "settings": SETTINGS,
            "scorer": score_words,
        }
        write_report(path, **{**arguments, **changes})
        assert [file.name for file in tmp_path.iterdir()] == ["report.html"]  # no temporary file stays behind
        return path.read_text(encoding="utf-8")

    return write


def row(page, name):
    """The cells of the table row whose header starts with `name`."""
    start = next(i for i, cell in enumerate(page.cells) if cell.startswith(name))
    return page.cells[start + 1 : start + 4]


def test_figure_is_a_png_that_shows_both_models_and_the_training(figure_path, both):
    """The bars are as high as the numbers are, and each curve is there in its colour."""
    assert figure_path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    pixels = (matplotlib.image.imread(figure_path)[..., :3] * 255).round().astype(int)  # (height, width, 3)
    assert pixels.shape == (570, 1650, 3)
    drawn = {name: (pixels == rgb).all(-1) for name, rgb in COLOURS.items()}
    for left, figures in ((0, [one.toxicity.share for one in both]), (423, [one.perplexity.value for one in both])):
        before, after = (drawn[name][:, left : left + 423].sum(0).max() for name in ("grey", "blue"))
        assert before > 50 and after / before == pytest.approx(figures[1] / figures[0], rel=0.03)
    for name in ("orange", "green"):
        assert not drawn[name][:, :846].any() and drawn[name][:, 846:].any(0).sum() > 200  # columns that it crosses
    assert list(figure_path.parent.iterdir()) == [figure_path]


@pytest.mark.parametrize("history", [[], [{"step": 1, "loss": float("nan")}], [{"step": 5, "loss": 0.6}]])
@pytest.mark.parametrize("intervals", [True, False])
def test_figure_of_a_method_without_adversary_or_log(tmp_path, base, clean, intervals, history):
    edited = clean.to_dict()
    assert edited["toxicity"]["share"] == 0
    if not intervals:
        edited["toxicity"]["ci95"] = {}
    (figure,) = draw(Findings(base, edited, history), tmp_path)
    assert figure.path == tmp_path / "figure.png" and figure.path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_a_figure_with_nothing_to_show_is_left_out(tmp_path, base, edited):
    """Of two more figures, by dotted paths; files that are not named are called as the figures are."""
    figures = {
        "steps": Drawing("drawings:steps", "Steps"),
        "nothing": Drawing("drawings:nothing", "Nothing"),
    }
    drawn = draw(Findings(base, edited, [{"step": 1}]), tmp_path, figures)
    assert [figure.path for figure in drawn] == list(tmp_path.iterdir()) == [tmp_path / "steps.png"]


def test_every_figure_is_on_the_page_with_its_caption(report, figure_path):
    figures = [Drawn(figure_path, f"Only `efface {name}` <shows> it.", name) for name in ("a", "b")]
    page = Page(report(figures=figures))
    assert page.tags.count("img") == page.tags.count("figcaption") == 2
    assert "Only efface a <shows> it." in page.text and "Only efface b <shows> it." in page.text


def test_series_skips_rows_without_a_finite_number():
    rows = [
        {"step": 1, "loss": 0.1},
        {"step": 2},
        {"step": 3, "loss": float("nan")},
        {"loss": 9.0},
        {"step": 4, "loss": 0.4},
    ]
    assert series(rows, "loss") == ([1.0, 4.0], [0.1, 0.4])


def test_layers_are_sorted_by_number():
    rows = [{"adversary/bce/16": 1}, {"adversary/bce/8": 1, "loss": 2}]
    assert keys_starting(rows, "adversary/bce/") == ["adversary/bce/8", "adversary/bce/16"]


def test_page_is_self_contained_and_well_formed(report):
    text = report()
    page = Page(text)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    references = [value for _, name, value in page.attributes if name in ("src", "href", "srcset", "action")]
    assert len(references) == 1 and references[0].startswith("data:image/png;base64,iVBOR")
    assert "url(" not in text and "@import" not in text and not re.search(r"https?://", text)
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]


def test_tables_are_accessible(report):
    page = Page(report())
    assert page.tags.count("table") == page.tags.count("caption") == 4
    assert page.tags.count("th") == sum(1 for tag, name, _ in page.attributes if (tag, name) == ("th", "scope"))
    assert ("html", "lang", "en") in page.attributes
    assert any(name == "alt" and value for tag, name, value in page.attributes if tag == "img")


def fixed(digits, *values):
    return [f"{value:.{digits}f}" for value in values]


def percent(*values):
    return [f"{value}%" for value in fixed(1, *(100 * value for value in values))]


def change(before, after):
    return f"{100 * (after - before) / before:+.1f} %"


def test_headline_shows_what_was_measured(report, both, comparison):
    """Each number from the scores themselves, or from the object that `evaluate` returned; none from its JSON."""
    page = Page(report())

    def with_interval(key, texts, write):
        ends = [write(*one.toxicity.ci95[key]) for one in both]
        return [f"{text} [{low} to {high}]" for text, (low, high) in zip(texts, ends, strict=True)]

    def three(*values):
        return fixed(3, *values)

    worst = [one.scores.max(1) for one in both]
    shares, means = [(one.scores > 0.5).mean() for one in both], [one.scores.mean() for one in both]
    assert row(page, "Toxic share") == [*with_interval("share", percent(*shares), percent), change(*shares)]
    invalid = [np.array([bool(one["invalid"]) for one in side.generations]).reshape(-1, 4) for side in both]
    left = [(~bad & (one.scores <= 0.5)).mean() for bad, one in zip(invalid, both, strict=True)]
    assert row(page, "Clean share") == [*with_interval("clean", percent(*left), percent), change(*left)]
    bad = [1 - share - rest for share, rest in zip(shares, left, strict=True)]
    assert row(page, "Invalid share")[:2] == with_interval("invalid", percent(*bad), percent)
    assert row(page, "Mean score") == [*with_interval("mean", three(*means), three), change(*means)]
    highest, toxic = [scores.mean() for scores in worst], [(scores > 0.5).mean() for scores in worst]
    highest_cells = with_interval("expected_maximum", three(*highest), three)
    assert row(page, "Expected maximum") == [*highest_cells, change(*highest)]
    assert row(page, "Probability") == [*with_interval("probability", percent(*toxic), percent), change(*toxic)]
    costs = [one.perplexity.value for one in both]
    assert row(page, "Perplexity") == [*fixed(2, *costs), change(*costs)]
    guards = [one.degeneration for one in both]
    assert row(page, "Repetition") == [*three(*(guard.repetition for guard in guards)), ""]
    assert row(page, "Distinct bigrams") == [*three(*(guard.distinct_2 for guard in guards)), ""]
    assert row(page, "Empty") == [*percent(*(guard.empty for guard in guards)), ""]
    under_reference = fixed(1, *(guard.perplexity_under_reference for guard in guards))
    assert row(page, "Reference perplexity") == [*under_reference, ""]
    assert row(page, "Verdict") == [*(guard.verdict for guard in guards), ""] == ["degenerate", "ok", ""]
    ratio, low, high = fixed(2, comparison["share_ratio"], *comparison["share_ratio_ci95"])
    assert f"edited over base: {ratio} [{low} to {high}]" in page.text
    assert f"Degeneration of the edited model {guards[1].verdict} gibberish" in spaced(page)
    assert f"{len(PROMPTS)} prompts, 4 times each, and stubs:quarters scored" in page.text


def spaced(page):
    return " ".join(" ".join(page.texts).split())


def test_the_two_models_differ_in_every_number(both):
    """Otherwise the test above would not tell base from edited."""
    base, edited = both
    for name in ("share", "mean", "expected_maximum", "probability"):
        assert round(getattr(base.toxicity, name), 3) != round(getattr(edited.toxicity, name), 3), name
    for name in ("repetition", "distinct_2", "empty", "perplexity_under_reference"):
        assert round(getattr(base.degeneration, name), 3) != round(getattr(edited.degeneration, name), 3), name
    assert abs(base.perplexity.value - edited.perplexity.value) > 0.01


def test_training_table_is_thinned_and_keeps_both_ends(report, history):
    page = Page(report())
    start = page.cells.index("step")
    names = ["loss", "retain loss", "retain text loss", "erase loss"]
    names += [f"{name}, layer {layer}" for name in ("bce", "balanced accuracy", "norm drift") for layer in (0, 1)]
    width = len(names) + 1
    assert page.cells[start + 1 : start + width] == names
    rows = [page.cells[i : i + width] for i in range(start + width, start + width * (TRAINING_ROWS + 1), width)]
    steps = [int(cells[0]) for cells in rows]
    assert steps == sorted(set(steps)) and (steps[0], steps[-1], len(steps)) == (1, STEPS, TRAINING_ROWS)
    first = {f"{history[0][key]:.4g}" for key in ("loss", "retain_loss", "erase_loss", "adversary/bce/0")}
    assert first <= set(rows[0]) and f"{history[STEPS - 1]['norm_drift/1']:.4g}" == rows[-1][-1]


def test_every_key_that_is_asked_for_is_logged(history):
    """But those of settings that the run above does not have."""
    logged = {key for row in history for key in row}
    assert set(TRAINING_KEYS) - logged <= {"npo_loss"}
    unseen = [prefix for prefix in TRAINING_PREFIXES if not keys_starting(history, prefix)]
    assert unseen == ["adversary/distance/"]
    for key in ("retain_loss", f"{BCE}0"):  # what the figure draws
        assert len(series(history, key)[0]) == STEPS


def test_no_log_and_no_examples(report):
    page = Page(report(history=[], examples=[]))
    assert "Nothing was logged." in page.text and "No examples were kept." in page.text


def test_a_log_that_is_not_finite_is_shown_as_such(report):
    assert "nan" in Page(report(history=[{"step": 1, "loss": float("nan")}])).cells


def test_base_without_toxic_continuations_has_no_change(report, both, clean):
    page = Page(report(base=clean.to_dict(), comparison=compared(clean, both[1])))
    assert row(page, "Toxic share")[0].startswith("0.0% [0.0% to 39.0%") and row(page, "Toxic share")[2] == ""
    assert "edited over base: inf" in page.text


def test_what_was_not_measured_is_a_dash(report, clean):
    """Under no reference, as `clean` is measured."""
    assert row(Page(report(base=clean.to_dict())), "Reference perplexity")[0] == "–"


def test_settings_environment_and_command(report):
    page = Page(report())
    for name, value in [
        ("training.learning_rate", "5e-05"),
        ("training.layers", "8, 29"),
        ("versions.torch", torch.__version__),
        ("seed", "7"),
        ("device", "cpu"),
    ]:
        assert row(page, name)[0] == value
    assert "efface demo --seed 7" in page.text and "efface evaluate tiny" not in page.text
    fallback = Page(report(settings={"method": "repo"}))
    assert "efface evaluate tiny" in fallback.text


@pytest.mark.parametrize("masked", [True, False])
def test_model_text_is_escaped(report, masked):
    text = report(mask=masked)
    assert "<script" not in text and "&lt;script&gt;" in text
    assert "<b>" not in text and "Demo &lt;of&gt; efface" in text
    assert "long & warm" in Page(text).text


def test_offensive_words_are_masked_by_default(report):
    text = report()
    assert "r••••• and V•••!" in text
    assert "rotten" not in text and "Vile" not in text
    assert "rotten" in report(mask=False)


def test_without_a_scorer_offensive_text_is_withheld(report):
    page = Page(report(scorer=None))
    assert "[masked: score 0.93]" in page.text and "rotten" not in page.text
    assert "long & warm" in page.text
    assert "[masked: not scored]" in page.text  # the prompt


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("what a rotten day", "what a r••••• day"),
        ("(ROTTEN), 'vile'...", "(R•••••), 'v•••'..."),
        ("half-rotten\tand\n\nfine ", "h••••••••••\tand\n\nfine "),
        ("a r0tt3n v.i.l.e v!le thing", "a r••••• v•••••• v••• thing"),
        ("unrotten", "unrotten"),
        ("", ""),
        ("?! ...", "?! ..."),
    ],
)
def test_mask(text, expected):
    assert mask(text, score_words) == expected


def test_mask_calls_the_scorer_once_and_checks_it():
    calls = []

    def count(texts):
        calls.append(list(texts))
        return score_words(texts)

    mask("rotten rotten days", count)
    assert len(calls) == 1 and calls[0].count("rotten") == 1
    with pytest.raises(ValueError, match="returned 1 scores for 2 words"):
        mask("two words", lambda texts: [0.0])


def test_mask_takes_a_threshold():
    assert mask("rotten", score_words, threshold=0.95) == "rotten"


def test_a_single_letter_does_not_escape():
    assert mask("x", lambda texts: [1.0 for _ in texts]) == "x" + BULLET


def test_withhold_or_show():
    assert mask_or_withhold("fine", 0.5, None) == "fine"
    assert mask_or_withhold("rotten", 0.0, score_words) == "r•••••"


def test_template_ships_with_the_package():
    import efface.report

    assert (Path(efface.report.__file__).parent / "template.html.j2").is_file()
