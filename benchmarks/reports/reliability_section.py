"""What was done to the software, and what it bore: docs/reliability.md."""

from __future__ import annotations

from typing import Any

from figures import measured_on, read
from markdown_table import between, table


def reliability(text: str) -> str:
    """The page with its table made anew."""
    return between(text, "reliability", _table())


def _table() -> str:
    rows = [_operations(), *_mutations(), *_kills(), *_threads(), *_two_processes(), *_odd_places(), *_growth()]
    scripts = (
        "`python -m benchmarks.reliability.NAME`: operations, mutations, kills, threads, two_processes, odd_places, "
        "growth."
    )
    return f"{table(rows)}\n\n{scripts} {measured_on('reliability_operations')}"


def _row(what: str, done: str, wanted: str, faults: int | str) -> dict[str, Any]:
    return {"what": what, "done": done, "must not be": wanted, "was": faults}


def _operations() -> dict[str, Any]:
    rows = read("reliability_operations")
    count, changed = sum(row["count"] for row in rows), sum(row["changed"] for row in rows)
    methods = len({row["method"] for row in rows})
    what = f"random operations on models of {methods} methods: tasks added, removed, served, mixed, trained, fused, …"
    return _row(what, f"{count:,} operations", "bits of frozen weights or of other tasks that change", changed)


def _mutations() -> list[dict[str, Any]]:
    forged = [row for row in read("reliability_mutations") if row["kind"].startswith("forged")]
    damaged = [row for row in read("reliability_mutations") if row not in forged]
    made = []
    for what, rows, wrong in (("damaged", damaged, ", other content"), ("forged", forged, "")):
        count, faults = sum(row["count"] for row in rows), sum(row.get("fault", 0) for row in rows)
        kinds = ", ".join(row["kind"].removeprefix("forged ") for row in rows)
        grown = max(row["memory"] for row in rows)
        wanted = f"crashes, other errors{wrong}; twice the memory (most: {grown:.2f})"
        made.append(_row(f"{what} files: {kinds}", f"{count:,} files", wanted, faults))
    return made


def _kills() -> list[dict[str, Any]]:
    wanted = {
        True: "other weights than the undisturbed training's; half files",
        False: "half files; a command that fails then",
    }
    return [
        _row(
            f"`kill -9` during {row['work']}",
            f"{row['kills']} kills",
            wanted[row["work"].startswith(("train", "search"))],
            row["wrong"],
        )
        for row in read("reliability_kills")
    ]


def _two_processes() -> list[dict[str, Any]]:
    return [
        _row(
            f"two processes at once: {row['what']}", f"{row['rounds']} rounds",
            "mixtures; failures without a sentence; both failing", len(row["faults"]),
        )
        for row in read("reliability_two_processes")
    ]  # fmt: skip


def _growth() -> list[dict[str, Any]]:
    return [
        _row(
            f"memory over many {row['what']}", f"{row['count']:,}, from {row['MB before']:,.0f} MB after a tenth",
            "growth by more than 2 %", f"{max(0, row['grown %']):.1f} %",
        )
        for row in read("reliability_growth")
    ]  # fmt: skip


def _threads() -> list[dict[str, Any]]:
    return [
        _row(
            f"{row['threads']} threads on {row['tasks']} tasks{', compiled' if row['compiled'] else ''}",
            f"{row['calls']:,} calls", "answers that are another task's", row["wrong"] + len(row["failed"]),
        )
        for row in read("reliability_threads")
    ]  # fmt: skip


def _odd_places() -> list[dict[str, Any]]:
    rows = [row for row in read("reliability_odd_places") if row["fault"] is not None]
    disks = [row for row in rows if "left" in row]
    clocks = [row for row in rows if row["place"].startswith(("a clock", "files of", "umask"))]
    others = [row for row in rows if "left" not in row and row not in clocks]
    return [
        _row(
            "writing commands on a full disk, one that becomes full, a read-only one, a file for a folder",
            f"{len(disks)} commands", "tracebacks; old files that are lost", sum(row["fault"] for row in disks),
        ),
        _row(
            "no HOME, folders that cannot be written, LANG=C, names with spaces, quotes, newlines, emoji",
            f"{len(others)} commands", "tracebacks; failures where it can work", sum(row["fault"] for row in others),
        ),
        _row(
            "a clock that goes back, files of 1980 and of 2100, umask 077", f"{len(clocks)} commands", "failures",
            sum(row["fault"] for row in clocks),
        ),
    ]  # fmt: skip
