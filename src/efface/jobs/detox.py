"""What is the main job on the user's own model, in one command? `efface detox`.

    DIR/pairs.jsonl       preference pairs from the model itself, unless pairs are given
    DIR/tuning.jsonl      prompts that the strength is chosen on;   DIR/reported.jsonl      all others, but for those
                          that the training pairs hold
    DIR/sweep/            REPO at several strengths, each scaled to the utility budget (`efface sweep`)
    DIR/model/            the least toxic of them that fits: an ordinary checkpoint
    DIR/base.json, edited.json     both models on the reported prompts
    DIR/erasure.json      what the hidden states of both say of toxicity
    DIR/audit/            what attacks reach (`efface audit`)
    DIR/report.html, results.json

A finished stage is not done again, and an interrupted one goes on: the same command with `--resume`.
"""

import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path

from efface.data.rows import load_texts
from efface.errors import UserError
from efface.evaluation.prompt_sets import draw_prompts, load_prompts
from efface.files.digests import digest
from efface.files.environment import environment, versions
from efface.files.events import Journal, recorded
from efface.files.jsonl import Row
from efface.files.rerun import check_plan, read_plan, write_plan
from efface.files.results import RESULTS, check_output_dir, read_json, write_json
from efface.files.run_directory import run_directory
from efface.jobs.before_after import BASE, EDITED, compare_sides, measure_side, read_sides, tell, write_page
from efface.jobs.detox_settings import DetoxSettings
from efface.jobs.erasure import measure_erasure
from efface.jobs.strength import REPORTED, Chosen, Strengths, choose_strength, tradeoff_table, write_prompts
from efface.model.card import write_card
from efface.terminal.table import Block, Page

SAMPLES = 4
TUNED_PART = 3
"""One in so many prompts is for choosing."""


def detox(
    model: str,
    *,
    output: str | os.PathLike[str],
    settings: DetoxSettings | None = None,
    overwrite: bool = False,
    resume: bool = False,
    command: str | None = None,
    say: Callable[[str], None] = lambda line: None,
    show: Callable[[Block], None] = lambda block: None,
) -> Row:
    """Make a model less toxic within a utility budget, and say what came of it; see the top of this file.

    Args:
        model: what `load_model` takes; it is not changed.
        output: a run directory.
        settings: pairs, prompts, judges, what the edit may cost, how much is done.
        overwrite, resume: delete what lies there, or go on with it.
        command: how this was called, for the record.
        say, show: the first is told what happens, a line each, the second is given what came of it.

    Returns:
        What was written to `results.json`.

    Raises:
        UserError: for input that cannot work; nothing is written then.
        RunError: if no strength fits the budget.
    """
    settings = settings or DetoxSettings()
    read = [model, settings.pairs, settings.prompts, settings.text]
    folder = check_output_dir(output, overwrite=overwrite, resume=resume, inputs=read)
    tuning, reported, left_out = _split(settings)
    job = _Job(model, folder, settings, command, show, len(reported), left_out)
    plan = {"model": model, "settings": dataclasses.asdict(settings), **job.contents([*tuning, *reported])}
    if resume:
        check_plan(folder, read_plan(folder), plan, "a detox run", {})
    with (
        run_directory(output, overwrite=overwrite, resume=resume, inputs=read),
        recorded(folder, say, command=command) as journal,
    ):
        write_plan(folder, plan)
        write_prompts(folder, tuning, reported)
        return job.run(journal)


def _split(settings: DetoxSettings) -> tuple[list[str], list[str], int]:
    """Prompts to choose on and prompts to report, drawn by the seed, and how many the training pairs hold: these are
    neither."""
    found = list(dict.fromkeys(load_texts(load_prompts(settings.prompts), "prompt")))
    held = _trained_on(settings, found)
    prompts = [prompt for prompt in found if prompt not in held]
    tuning = draw_prompts(prompts, len(prompts) // TUNED_PART, settings.seed)
    if not tuning:
        others = f", without {len(held)} that the training pairs hold," if held else ""
        raise UserError(
            f"prompts {settings.prompts!r}: {len(prompts)}{others} are too few to choose on some and report others."
        )
    return tuning, [prompt for prompt in prompts if prompt not in set(tuning)], len(held)


def _trained_on(settings: DetoxSettings, prompts: list[str]) -> set[str]:
    """Which of the prompts the training pairs hold; those that are built continue the prompts of the shipped pairs."""
    from efface.data.pairs import load_pairs
    from efface.pairs.overlap import held_by_pairs
    from efface.pairs.source import PROMPTS

    if settings.pairs is None and settings.prompts == DetoxSettings.prompts:
        return set()  # the shipped ones are of other templates than the shipped pairs, which is all that is promised
    rows = load_pairs(settings.pairs or PROMPTS).rows
    return {prompt for prompt, held in zip(prompts, held_by_pairs(rows, prompts), strict=True) if held}


class _Job:
    """The stages, one after the other; each looks whether it is done."""

    def __init__(
        self,
        model: str,
        folder: Path,
        settings: DetoxSettings,
        command: str | None,
        show: Callable[[Block], None],
        n_reported: int,
        n_left_out: int,
    ):
        self.model, self.folder, self.settings, self.command = model, folder, settings, command
        self.show, self.n_reported, self.n_left_out = show, n_reported, n_left_out
        self.say: Journal  # once there is a directory
        self.start = time.monotonic()
        self.pairs = settings.pairs or str(folder / "pairs.jsonl")
        self.edited = folder / "model"

    def contents(self, prompts: list[str]) -> Row:
        """Hashes of what was named, which is loaded for it before anything is written, and the versions it is read by:
        a run that goes on with others would set figures beside each other that are none of one kind."""
        from efface.data.pairs import rows_digest
        from efface.model.fingerprint import fingerprint_of
        from efface.model.load import load_model
        from efface.pairs import load_source
        from efface.pairs.source import check_settings
        from efface.scoring import load_scorer

        judges = [getattr(load_scorer(scorer), "version", None) for scorer in self.settings.scorers]
        found: Row = {"prompts of": digest(sorted(prompts)), "text of": digest(load_texts(self.settings.text))}
        found |= {"judges of": digest(judges), "versions": versions()}
        if self.settings.pairs is None:
            check_settings(self.settings.source, load_source(self.settings.source)())
        else:
            found["pairs of"] = rows_digest(self.settings.pairs)
        return found | {"model of": fingerprint_of(load_model(self.model)[0])}

    def run(self, journal: Journal) -> Row:
        self.say = journal
        effort = self.settings.effort
        self.say(f"{self.settings.budget}: {effort.minutes} for SmolLM2-135M on 2 cores")
        if self.n_left_out:
            self.say(
                f"{self.n_left_out} of {self.settings.prompts} are left out: the training pairs hold these prompts, "
                "or nearly so"
            )
        self._step(1, f"pairs: {self.settings.pairs or f'{effort.n_pairs} from the model itself'}")
        self._build_pairs()
        rates = ", ".join(f"{rate:g}" for rate in effort.learning_rates)
        self._step(2, f"REPO at learning rates {rates}, each scaled to the budget, on prompts that are not reported")
        kept = self._choose()
        self._step(3, f"both models on {self.n_reported} prompts x {SAMPLES} samples")
        comparison = self._evaluate()
        self._step(4, f"audit, {self.settings.budget}" if self.settings.audited else "no audit was asked for")
        findings: dict[str, Block] = {"Strength and its price": tradeoff_table(kept)}
        if self.settings.audited:
            findings["What attacks reach"] = self._audit()
        self._step(5, "the hidden states of both models on held-out pairs, and the report")
        return self._conclude(kept, comparison, findings)

    def _step(self, number: int, text: str) -> None:
        self.say.stage(text, f"\n[{number}/5, {time.monotonic() - self.start:4.0f} s] {text}")

    def _build_pairs(self) -> None:
        if self.settings.pairs is not None or Path(self.pairs).exists():
            return
        from efface.pairs.builder import build_pairs
        from efface.pairs.config import BuilderConfig

        report = build_pairs(
            self.model,
            None,
            self.settings.source,
            output=self.pairs,
            config=BuilderConfig(seed=self.settings.seed),
            scorer=self.settings.scorers[0],
            limit=self.settings.effort.n_pairs,
            resume=True,
            command=self.command,
            progress=True,
        )
        self.say(f"{report.counts['kept']} pairs from {report.n_prompts} prompts; style-only AUC {report.style_auc}")

    def _choose(self) -> Chosen:
        settings = self.settings
        return choose_strength(
            self.model,
            self.folder,
            self.edited,
            Strengths(settings.effort.learning_rates, settings.of_repo, settings.seed, settings.bounds),
            pairs=self.pairs,
            text=settings.text,
            text_tokens=settings.effort.text_tokens,
            scorers=settings.scorers,
            command=self.command,
            say=self.say,
        )

    def _evaluate(self) -> Row:
        prompts = load_texts(str(self.folder / REPORTED), field="prompt")
        for name, model, base in ((BASE, self.model, None), (EDITED, str(self.edited), self.model)):
            measure_side(
                model,
                self.folder / f"{name}.json",
                prompts=prompts,
                texts=load_texts(self.settings.text),
                text_tokens=self.settings.effort.text_tokens,
                samples=SAMPLES,
                seed=self.settings.seed,
                base=base,
                scorers=self.settings.scorers,
                command=self.command,
            )
        return compare_sides(self.folder, self.n_reported)

    def _audit(self) -> Page:
        from efface.audit.run import audit_models
        from efface.audit.table import audit_page

        how: Row = {"base": self.model, "prompts": str(self.folder / REPORTED), "text": self.settings.text}
        how |= {"scorer": list(self.settings.scorers), "seed": self.settings.seed, "command": self.command}
        return audit_page(
            audit_models(
                {EDITED: str(self.edited)},
                output=self.folder / "audit",
                budget=self.settings.budget,
                measurement=how | {"progress": True},
                resume=True,
                say=self.say,
            )
        )

    def _conclude(self, chosen: Chosen, comparison: Row, findings: dict[str, Block]) -> Row:
        training = read_json(self.edited / RESULTS, {"history": [dict], "settings": dict})
        models, seed = (self.model, str(self.edited)), self.settings.seed
        erasure = measure_erasure(*models, self.folder, trained_on=self.pairs, seed=seed, say=self.say)
        base, edited = read_sides(self.folder)
        write_card(self.edited, base=base, edited=edited, comparison=comparison)
        result = {"schema": 1, "plan": read_plan(self.folder), "base": base, "edited": edited}
        result |= {"comparison": comparison, "erasure": erasure, "chosen": chosen.kept}
        result |= {"environment": environment(seed=seed, model=None, command=self.command)}
        write_json(self.folder / RESULTS, result)
        write_page(self.folder, title="efface detox", training=training, erasure=erasure)
        for heading, found in findings.items():
            self.show(f"\n{heading}\n")
            self.show(found)
        tell(self.folder, comparison, self.show)
        self.say(f"\nreport: {self.folder / 'report.html'}\nmodel:  {self.edited} (an ordinary checkpoint)")
        return result
