"""Which figures do the tests of the report draw?"""

from matplotlib.figure import Figure

from efface.report.figures import Findings


def steps(findings: Findings) -> Figure:
    figure = Figure()
    figure.add_subplot().plot([row["step"] for row in findings.history])
    return figure


def nothing(findings: Findings) -> None:
    return None
