"""The report: numbers as given, model text escaped and masked, nothing fetched from outside.

Of: report/masking.py, report/edit.py, report/page.py
"""

import base64
import hashlib
import html
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from erased import erased
from tiny import tiny_model, tiny_tokenizer

import efface
from efface.cli import build_parser
from efface.evaluation.comparison import ratio_ci
from efface.evaluation.settings import OrdinaryText, RunSettings
from efface.generation.decoding import Decoding
from efface.methods.repo import REPOConfig, REPOTrainer
from efface.report import FIGURES, MASKS
from efface.report.edit import edit_page
from efface.report.examples import SHOWN
from efface.report.figures import Findings, draw
from efface.report.html import write_page
from efface.report.masking import BULLET, mask, mask_or_withhold, mask_tokens
from efface.report.training import ACCURACY, KEYS, PREFIXES, ROWS, keys_starting, series

VOID = {"meta", "img", "br", "link", "input", "hr"}
BAD = {"rotten", "vile"}
LIMIT = 5_000_000
"""Bytes of a page: it is sent by mail."""


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
ERASED = erased((0.1, 0.12), (0.1, 0.05))
SETTINGS = {
    "method": "repo",
    "model": "tiny",
    "pairs": "toy.jsonl",
    "training": {"learning_rate": 5e-5, "layers": [8, 29]},
    "command": "efface demo -o runs/x --max-steps 7",
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
        self.open, self.tags, self.attributes, self.texts, self.cells, self.codes = [], [], [], [], [], []
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
        if tag == "code":
            self.codes.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if "td" in self.open or "th" in self.open:
            self.cells[-1] += data
        if "code" in self.open:
            self.codes[-1] += data

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
        npo_weight=0.0,
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
def figures(base, edited, history):
    return draw(Findings(base, edited, history, ERASED))


@pytest.fixture
def report(tmp_path, figures, base, edited, comparison, history):
    def write(**changes):
        path = tmp_path / "report.html"
        arguments = {
            "title": "Demo <of> efface",
            "base": base,
            "edited": edited,
            "history": history,
            "figures": figures,
            "comparison": comparison,
            "examples": EXAMPLES,
            "settings": SETTINGS,
            "erasure": ERASED,
            "scorer": score_words,
        }
        write_page(path, edit_page(**{**arguments, **changes}))
        assert [file.name for file in tmp_path.iterdir()] == ["report.html"]  # no temporary file stays behind
        return path.read_text(encoding="utf-8")

    return write


def row(page, name):
    """The cells of the table row whose header starts with `name`."""
    start = next(i for i, cell in enumerate(page.cells) if cell.startswith(name))
    return page.cells[start + 1 : start + 4]


def test_page_is_self_contained_and_well_formed(report):
    text = report()
    page = Page(text)
    assert not {"link", "iframe", "object"} & set(page.tags)
    references = [value for _, name, value in page.attributes if name in ("src", "href", "srcset", "action")]
    assert references and all(value.startswith("#") for value in references)  # parts of a picture
    assert "@import" not in text and not re.search(r"https?://", text)
    assert set(re.findall(r"url\((.)", text)) == {"#"}
    names = [value for _, name, value in page.attributes if name == "id"]
    assert len(names) == len(set(names))
    assert {value[1:] for value in references} <= set(names)
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]


def test_the_only_script_is_the_one_that_the_policy_allows(report):
    """Whatever else came into the page would not run: the policy knows scripts by their hash."""
    text = report()
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[1]
    assert html.unescape(policy).endswith(f"script-src 'sha256-{digest}'") and "default-src 'none'" in policy


def test_the_first_line_is_what_came_of_it(report, both):
    """Before any other text, but for the title: shares, and how large the second may be."""
    page = Page(report())
    shares = percent(*((one.scores > 0.5).mean() for one in both))
    (most,) = percent(both[1].toxicity.ci95["share"][1])
    counts = [f"{(one.scores > 0.5).sum()} of {one.scores.size}" for one in both]
    first = (
        f"{shares[0]} → {shares[1]} (at most {most}) of continuations are toxic: {counts[0]} before, {counts[1]} after"
    )
    body = page.text[page.text.index("Demo <of> efface", 1) :]  # behind the title of the window and the styles
    assert body.startswith(f"Demo <of> efface {first}")


def test_a_model_that_writes_gibberish_is_called_so_at_the_top(report, base):
    page = Page(report(edited=base))
    assert base["degeneration"]["verdict"] == "degenerate"
    assert page.text.index("What the edited model writes is degenerate") < page.text.index("Before and after")


def test_every_command_that_is_named_exists(report, base):
    """Each `efface ...` in code or prose is one that the command line takes."""
    pages = [Page(report()), Page(report(erasure=None, not_probed="too few pairs")), Page(report(edited=base))]
    parser = build_parser()
    lines = {code for page in pages for code in page.codes if code.startswith("efface ")}
    assert "efface demo -o runs/x --max-steps 7" in lines
    for line in lines:
        assert parser.parse_known_args(shlex.split(line)[1:])[1] == [], line
    commands = next(action.choices for action in parser._actions if action.dest == "command")
    for page in pages:
        assert set(re.findall(r"`?\befface ([a-z]+)", page.text)) <= set(commands)


def test_the_page_of_a_real_command_names_it_as_it_was_given(report):
    page = Page(report(settings=SETTINGS | {"command": "efface detox 'my model' -o runs/x --max-kl 0.1"}))
    (line,) = [code for code in page.codes if code.startswith("efface ")]
    assert build_parser().parse_known_args(shlex.split(line)[1:])[0].model == "my model"


def test_the_hidden_states_have_a_section_with_figure_sentence_and_table(report):
    page = Page(report(erasure=ERASED))
    assert "What the hidden states still say" in page.text and "The largest fall is in layer 3" in page.text
    assert page.cells[page.cells.index("After layer") : page.cells.index("After layer") + 10][5:7] == [
        "1",
        "0.100 [0.080 to 0.120]",
    ]
    assert "indistinguishable" not in page.text


def test_hidden_states_that_were_not_probed_are_not_passed_over_in_silence(report, base, edited, history):
    page = Page(report(erasure=None, figures=draw(Findings(base, edited, history)), not_probed="19 pairs <only>"))
    assert "They were not probed: 19 pairs <only>" in page.text and "The largest fall" not in page.text


def test_failures_stand_before_successes_each_kind_with_its_number(report):
    rows = [
        EXAMPLES[0] | {"base_score": 0.9, "edited_score": 0.6 + i / 100, "edited": f" still {i}"} for i in range(12)
    ]
    rows += [EXAMPLES[0] | {"base_score": 0.1, "edited_score": 0.7, "edited": " newly"}, *EXAMPLES]
    text = Page(report(examples=rows)).text
    assert (
        f"Still toxic: 12 of 14 Toxic before the edit and after it; the highest scores after it first; {SHOWN} are"
        in text
    )
    places = [
        text.index(what) for what in ("still 11", "still 2", "Newly toxic: 1 of 14", "newly", "Biggest drops: 1 of 14")
    ]
    assert places == sorted(places) and "still 1 " not in text


def test_a_page_is_small_whatever_the_models_wrote(report):
    word = EXAMPLES[0] | {"edited": "x" * 1_000_000, "prompt": "word " * 200_000, "edited_score": 0.9}
    settings = SETTINGS | {"pairs": "shipped:train", "long": ["y" * 100] * 100_000}
    text = report(examples=[word] * 300, settings=settings)
    assert len(text.encode()) < LIMIT


def test_the_page_prints(report):
    """On white, whatever the screen shows, and without what must be scrolled to."""
    text = report()
    print_rules = text[text.index("@media print") :]
    assert text.index("prefers-color-scheme: dark") < text.index("@media print")
    for name in ("ink", "paper", "line", "base", "edited", "orange", "green"):
        assert f"--{name}: " in print_rules
    assert "break-inside: avoid" in print_rules and "overflow: visible" in print_rules


def test_tables_are_accessible(report):
    page = Page(report())
    assert page.tags.count("table") == page.tags.count("caption") == 5
    assert page.tags.count("th") == sum(1 for tag, name, _ in page.attributes if (tag, name) == ("th", "scope"))
    assert ("html", "lang", "en") in page.attributes
    labels = [value for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-label")]
    assert len(labels) == page.tags.count("svg") == len(FIGURES) and all(labels)


def fixed(digits, *values):
    return [f"{value:.{digits}f}" for value in values]


def percent(*values):
    return [f"{value} %" for value in fixed(1, *(100 * value for value in values))]


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
    rise = change(*(guard.perplexity_under_reference for guard in guards))
    assert row(page, "Reference perplexity") == [*under_reference, rise]
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
    rows = [page.cells[i : i + width] for i in range(start + width, start + width * (ROWS + 1), width)]
    steps = [int(cells[0]) for cells in rows]
    assert steps == sorted(set(steps)) and (steps[0], steps[-1], len(steps)) == (1, STEPS, ROWS)
    first = {f"{history[0][key]:.4g}" for key in ("loss", "retain_loss", "erase_loss", "adversary/bce/0")}
    assert first <= set(rows[0]) and f"{history[STEPS - 1]['norm_drift/1']:.4g}" == rows[-1][-1]


def test_every_key_that_is_asked_for_is_logged(history):
    """But those of settings that the run above does not have."""
    logged = {key for row in history for key in row}
    assert set(KEYS) - logged <= {"npo_loss"}
    unseen = [prefix for prefix in PREFIXES if not keys_starting(history, prefix)]
    assert unseen == ["adversary/distance/"]
    for key in ("retain_loss", f"{ACCURACY}0"):  # what the figures draw
        assert len(series(history, key)[0]) == STEPS


def test_no_log_and_no_examples(report):
    page = Page(report(history=[], examples=[]))
    assert "Nothing was logged." in page.text and "No examples were kept." in page.text


def test_a_log_that_is_not_finite_is_shown_as_such(report):
    assert "nan" in Page(report(history=[{"step": 1, "loss": float("nan")}])).cells


def test_base_without_toxic_continuations_has_no_change(report, both, clean):
    page = Page(report(base=clean.to_dict(), comparison=compared(clean, both[1])))
    assert row(page, "Toxic share")[0].startswith("0.0 % [0.0 % to 39.0 %") and row(page, "Toxic share")[2] == ""
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
    assert (
        "The command that made it: efface demo -o runs/x --max-steps 7" in page.text
        and "efface evaluate tiny" not in page.text
    )
    fallback = Page(report(settings={"method": "repo"}))
    assert "efface evaluate tiny" in fallback.text


@pytest.mark.parametrize("mask", MASKS)
def test_model_text_is_escaped(report, mask):
    text = report(mask=mask)
    assert text.count("<script") == 1 and "&lt;script&gt;" in text
    assert "<b>" not in text and "Demo &lt;of&gt; efface" in text
    assert "long & warm" in Page(text).text


def test_offensive_words_are_masked_by_default(report):
    text = report()
    assert "<summary> r••••• and V•••!" in text and "<details><" in text and "<details open" not in text
    hidden = re.findall(r"</summary><blockquote>(.*?)</blockquote></details>", text)
    assert sum("rotten" in one for one in hidden) == text.count("rotten") == 2  # among the drops, and drawn
    assert "rotten" in report(mask="never") and "<details>" not in report(mask="never")


def test_offensive_words_can_be_kept_out_of_the_page(report):
    text = report(mask="always")
    assert "r••••• and V•••!" in text and "rotten" not in text and "Vile" not in text and "<details>" not in text


def test_without_a_scorer_offensive_text_is_withheld(report):
    page = Page(report(scorer=None, mask="always"))
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


def test_of_a_word_in_several_tokens_the_first_letter_stays_and_no_other():
    """Also where every letter is a token, and where tokens come without their spaces."""
    assert mask_tokens(["what", " rot", "ten", ",", " fine"], score_words) == ["what", " r••", "•••", ",", " fine"]
    assert mask_tokens(["a", " ", *"rotten", " day"], score_words) == ["a", " ", "r", *"•••••", " day"]
    assert mask_tokens(["what", "rot", "ten", "day"], score_words)[1:3] == ["r••", "•••"]
    assert mask_tokens([], score_words) == [] and mask_tokens(["?!"], score_words) == ["?!"]


def test_a_token_is_judged_as_it_is_shown():
    assert mask_tokens(["it", " is", " un", "rotten"], lambda words: [float(word == "rotten") for word in words]) == [
        "it",
        " is",
        " un",
        "r•••••",
    ]


def test_withhold_or_show():
    assert mask_or_withhold("fine", 0.5, None) == "fine"
    assert mask_or_withhold("rotten", 0.0, score_words) == "r•••••"


def test_template_ships_with_the_package():
    import efface.report

    assert (Path(efface.report.__file__).parent / "template.html.j2").is_file()
