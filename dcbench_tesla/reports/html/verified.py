"""The part with the registry of verified sets."""

from dcbench_tesla.compare.accuracy import Cell
from dcbench_tesla.reports.html.parts import Figure, Made, Part, Table
from dcbench_tesla.reports.verified import Entry, verified


def verified_part() -> Part:
    """Return the part with the claimed and the measured accuracy of every set of the registry."""
    entries = verified()
    return Part(
        id="verified",
        title="Verified sets",
        short="Verified",
        about="Claimed accuracies of distilled sets, and what networks trained here reach: the mean with its 95 % "
        "interval, whether the claim holds, and if not, which single change closes the gap; undecided where the "
        "measurement is too coarse to judge it. The registry comes with dcbench; so far its sets are its own, and none "
        "is a published one.",
        make="dcbench verify FILE --claim PERCENT",
        figures=[
            Figure(
                title="Claims and what was measured",
                caption="Test accuracy in %.",
                made=Made(facts={}, commands=[entry.command for entry in entries]),
                table=Table(
                    head=["set", "claimed", "measured", "networks", "verdict", "source", "recipe"],
                    body=[_line(entry) for entry in entries],
                ),
            )
        ],
    )


def _line(entry: Entry) -> list[Cell]:
    count = len(entry.measured.values)
    numbers = [Cell(str(entry.claim), entry.claim.mean), Cell(str(entry.measured), entry.measured.mean)]
    texts = [Cell(text) for text in (entry.verdict, entry.source, entry.measured.recipe)]
    return [Cell(entry.name), *numbers, Cell(str(count), count), *texts]
