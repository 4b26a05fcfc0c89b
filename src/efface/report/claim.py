"""What may be claimed of a model, on how much, and what speaks against it? The first page of a report.

The claim with its scope, what each class of attackers achieved beside its control, counter-evidence, what is left
open, and the verdict against the limits that the user states. Every sentence is made of the numbers.
"""

from collections.abc import Iterator, Sequence

from efface.attacks import ACCESS
from efface.audit.battery import DIAGNOSTIC
from efface.audit.columns import ANY_COST, NO_CONTROL, NONE
from efface.files.jsonl import Row
from efface.report.evidence import Attempt, Column, Known, the_base
from efface.report.limits import Ruling
from efface.report.numbers import bracketed, change, percent
from efface.report.page import Grid, Points, Prose, Section
from efface.report.sources import ATTACKED

WORST, WORST_OF_ALL = "worst attack", "worst of all attacks"
"""Of a sweep: of the attacks that all its models are put through, and of those too that only the best are."""
VERDICT = "Verdict against the stated limits"
CLAIM = "What is claimed, and of how much"
ATTACKERS = "What each attacker achieved"
AGAINST = "What speaks against it"
OPEN = "What is left open"
MAPS = (
    "In the EU's Code of Practice for General-Purpose AI, Safety and Security, Appendix 3, these sections map to: 3.1 "
    "(rigorous model evaluations), the claim and its scope; 3.2 (model elicitation), the attackers and their "
    "controls; 3.3 (effectiveness of mitigations), the attackers and what speaks against the claim. Nothing here maps "
    "to 3.4 and 3.5. That is where to look, and no assessment."
)


def verdict_section(rulings: Sequence[Ruling]) -> Section:
    """Each limit, what was found, and whether it is met."""
    unmet = [ruling for ruling in rulings if not ruling.met]
    said = f"All {len(rulings)} are met." if not unmet else f"{len(unmet)} of {len(rulings)} are not met."
    rows = [[one.limit.text, one.model, one.found or "nothing", one.verdict] for one in rulings]
    head = ["Limit", "Model", "Found", "Verdict"]
    return Section(VERDICT, [Prose(said, warning=bool(unmet)), Grid(head, rows, "Limits and what was found.")])


def claim_section(subjects: Sequence[Known], models: Sequence[Known]) -> Section:
    """A sentence for each model that the report is about."""
    points = [
        _claim(one, model.name, the_base(models, one) or the_base(models, model))
        for model in subjects
        for one in _claimed(model)
    ]
    scope = (
        "It holds for these prompts, this way of decoding and these judges, which are automatic and know English "
        "best; an interval says what other prompts of the same kind would change, and no more."
    )
    return Section(CLAIM, [Points(points), Prose(scope)])


def _claimed(model: Known) -> list[Known]:
    """What was measured of it before attacks, but for what an attack has measured by the way where there is more."""
    return [one for one in model.readings if one.source.kind != ATTACKED] or model.readings[:1]


def _claim(model: Known, name: str, base: Known | None) -> str:
    """A sentence on one reading of the model of that name."""
    figures = model.figures
    toxicity, decoding = figures["toxicity"], figures["toxicity"].get("decoding")
    prompts = (figures.get("settings") or {}).get("prompts")
    by = "; ".join(f"{bracketed(one['share'], one['ci95']['share'], '.1%')} by {j}" for j, one in model.judges.items())
    said = f"{name}{f' ({model.model})' if model.model else ''}: of {toxicity['samples']} continuations each of "
    said += (
        f"{toxicity['n_prompts']} prompts{f' ({prompts})' if prompts else ''}, {decoding or 'sampled'}, toxic are {by}"
    )
    beside = next((one for one in (base.readings if base is not None else ()) if _same_prompts(model, one)), None)
    if beside is not None and beside is not model:
        theirs = (
            f"{percent(one['share'])} by {judge}" for judge, one in beside.judges.items() if judge in model.judges
        )
        said += f"; of the base's {'; '.join(theirs)}"
    cost = figures.get("perplexity")
    if model.change is not None:
        said += f"; perplexity of ordinary text {change(model.change)}"
    elif cost:
        said += f"; perplexity of ordinary text {cost['value']:.2f}"
    return f"{said}; what it writes is {figures['degeneration']['verdict']}."


def _same_prompts(one: Known, other: Known) -> bool:
    """Whether both were measured on the same prompts, continued in the same way, as far as that is known."""
    asked = _asked(one)
    return one.source is other.source or (asked is not None and asked == _asked(other))


def _asked(model: Known) -> tuple[object, ...] | None:
    """None where nothing says which prompts they were: those of an audit, texts given from Python."""
    toxicity, settings = model.figures["toxicity"], model.figures.get("settings") or {}
    if settings.get("prompts") is None:
        return None
    drawn = [settings.get(name) for name in ("prompts", "limit", "limit_seed", "decoding")]
    return (toxicity["n_prompts"], toxicity.get("samples"), toxicity.get("decoding"), *drawn)


def attackers_section(subjects: Sequence[Known], models: Sequence[Known]) -> Section | None:
    """Access by access: the worst case where it was judged over all attacks, then each attack; None without any."""
    rows: list[list[str]] = []
    for model in subjects:
        rows += _rows(model, models, one_of_many=len(subjects) > 1)
    if not rows:
        return None
    named = ["Model"] if len(subjects) > 1 else []
    head = ["Attack", *named, "Attacker", "Toxic share", "More than before", "p", "Its control reaches", "Evidence"]
    said = (
        "An attacker chooses point and attack on other prompts than those it is judged on. A row is evidence where "
        "the attack raises its control, the undefended base or an edit that is known to fall; one that raises nothing "
        "says nothing. A share that stays low under attacks that do succeed on the base is what speaks for an edit."
    )
    grid = Grid(head, rows, "Toxic share that an attacker reaches; 95 % intervals in brackets.", sortable=True)
    who = Points([f"{access}: {what}" for access, what in ACCESS.items() if any(access in row for row in rows)])
    return Section(ATTACKERS, [Prose(said), who, grid])


def _rows(model: Known, models: Sequence[Known], *, one_of_many: bool) -> Iterator[list[str]]:
    named = [model.name] if one_of_many else []
    others = [one for one in models if one is not model]
    theirs = the_base(others, model)
    sources = {column.source.name for column in model.columns}
    for column in model.columns:
        of_these = "worst of these" + (f", {column.source.name}" if len(sources) > 1 else "")
        case, p = column.found, _p(column.found.get("p_holm"))
        yield [of_these, *named, column.access, *_cells(case["judged"]), p, _reached(_same_column(others, column)), ""]
        if case.get("any_cost") is not None:
            yield [f"{of_these}{ANY_COST}", *named, column.access, *_cells(case["any_cost"]), "", "", ""]
    for said, worst in {WORST: model.worst, WORST_OF_ALL: model.worst_of_all}.items():
        if worst is not None:
            other = None if theirs is None else theirs.worst if said == WORST else theirs.worst_of_all
            yield [said, *named, "weights", *_cells(worst), "", _reached(other), ""]
    for one in model.attempts:
        if one.judged is None:
            if not one.curve:
                yield [one.attack, *named, one.access, "none", "", "", "", one.why_not]
        else:
            found = one.evidence or NO_CONTROL
            yield [one.attack, *named, one.access, *_cells(one.judged), _p(one.p), _reached(one.control), found]
        if one.any_cost is not None:
            yield [f"{one.attack}{ANY_COST}", *named, one.access, *_cells(one.any_cost), "", "", ""]


def _same_column(models: Sequence[Known], column: Column) -> Row | None:
    """What the same audit reached on its base with the same access, wherever else that base is spoken of."""
    columns = (one for model in models if model.base for one in model.columns)
    alike = (one for one in columns if one.access == column.access and one.source is column.source)
    return next((one.found["judged"] for one in alike), None)


def _reached(judged: Row | None) -> str:
    return "" if judged is None else bracketed(judged["share"], judged["ci95"], ".1%")


def _cells(judged: Row) -> tuple[str, str]:
    versus = judged["versus_before"]
    low, high = (f"{100 * end:+.1f}" for end in versus["ci95"])
    difference = f"{100 * versus['difference']:+.1f} points [{low} to {high}]"
    return bracketed(judged["share"], judged["ci95"], ".1%"), difference


def _p(p: float | None) -> str:
    return "" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def against_section(subjects: Sequence[Known], further: Sequence[str]) -> Section:
    """What the numbers say against the claim, as far as they were looked at.

    Args:
        further: sentences of other parts: what a probe still finds.
    """
    points = [*dict.fromkeys(point for model in subjects for point in _against(model)), *further]
    if not points:
        return Section(AGAINST, [Prose("Nothing in these results; what was not tried stands below.")])
    return Section(AGAINST, [Points(points)])


def _against(model: Known) -> Iterator[str]:
    name, toxicity = model.name, model.figures["toxicity"]
    raised = [one for one in model.attempts if one.raises and one.access != DIAGNOSTIC]
    raised.sort(key=lambda one: -(one.share or 0))
    if raised:
        most = ", ".join(f"{one.attack} to {percent(one.share or 0)}" for one in raised)
        yield f"{name}: from {percent(toxicity['share'])}, toxicity comes back beyond chance under {most}."
    dear = [one for one in model.attempts if one.raises_at_any_cost and one.access != DIAGNOSTIC]
    if dear:
        most = ", ".join(f"{one.attack} to {percent(one.any_cost['share'])}" for one in dear if one.any_cost)
        yield f"{name}: with points that cost more perplexity than an attacker is granted it comes back under {most}."
    worst = model.worst_of_all or model.worst
    if worst is not None and worst["versus_before"]["ci95"][0] > 0:
        before, after = (percent(one["share"]) for one in (toxicity, worst))
        yield f"{name}: the worst attack brings it from {before} to {after}."
    for one in model.readings:
        yield from _against_reading(one, name)
    yield from model.remarks


def _against_reading(model: Known, name: str) -> Iterator[str]:
    """What one result says of it before any attack."""
    toxicity = model.figures["toxicity"]
    higher = [j for j, one in model.judges.items() if one["share"] > toxicity["ci95"]["share"][1]]
    if higher:
        shares = ", ".join(f"{percent(model.judges[judge]['share'])} by {judge}" for judge in higher)
        yield f"{name}: another judge finds more than the first one's interval allows: {shares}."
    verdict = model.figures["degeneration"]["verdict"]
    if verdict != "ok":
        reasons = "; ".join(model.figures["degeneration"].get("reasons") or [])
        yield f"{name}: its text is {verdict}{f' ({reasons})' if reasons else ''}, which scores as harmless."
    if model.change is not None and model.change > 0:
        yield f"{name}: it predicts ordinary text worse than the base, perplexity {change(model.change)}."
    invalid = toxicity.get("ci95", {}).get("invalid")
    if invalid and invalid[0] > 0 and toxicity["invalid"] > toxicity["share"]:
        yield f"{name}: {percent(toxicity['invalid'])} of its continuations are no answer, more than are toxic."


def open_section(subjects: Sequence[Known], not_tried: Sequence[str]) -> Section:
    """What these results cannot say."""
    points = [point for model in subjects for point in _open(model)]
    points += not_tried
    points.append(
        "One training seed says nothing of another, unless a section above has several; toxicity is what the judges "
        "call so, in the languages they know; harms of other kinds were not looked at."
    )
    return Section(OPEN, [Points(points), Prose(MAPS)])


def _open(model: Known) -> Iterator[str]:
    at_most = percent(max(one.figures["toxicity"]["ci95"]["share"][1] for one in model.readings))
    yield f"{model.name}: unattacked, up to {at_most} may be toxic by the interval alone."
    if not model.attempts:
        yield f"{model.name}: nobody has attacked it: `efface audit` does."
    untried = [f"{one.attack} ({one.why_not})" for one in model.attempts if one.judged is None and one.why_not]
    if untried:
        yield f"{model.name}: no figure of {', '.join(untried)}."
    mute = [one.attack for one in model.attempts if _says_nothing(one)]
    if mute:
        yield f"{model.name}: no evidence either way from {', '.join(mute)}: neither it nor a control was raised."


def _says_nothing(one: Attempt) -> bool:
    return one.judged is not None and one.evidence in (NONE, NO_CONTROL) and one.access != DIAGNOSTIC


def together(*sections: Section | None) -> list[Section]:
    """Those that are there."""
    return [section for section in sections if section is not None]
