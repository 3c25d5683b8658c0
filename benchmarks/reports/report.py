"""Writes docs/results.md, docs/zoo.md, and the tables of README.md, docs/deployment.md and docs/small-files.md, of what
was measured.

    python benchmarks/reports/report.py

It reads the registry and benchmarks/results/*.json. A test holds all of them against what this writes, so that no
figure in them is anybody's typing.
"""

from __future__ import annotations

import hashlib

from deployment_section import deployment
from figures import ROOT
from joint_section import draw_sharing, joint_section, ring_section
from markdown_table import between
from methods_section import draw_methods, methods_section, rooms_section
from networks_section import networks_section
from papers_section import papers_section
from pictures_section import peft_section, pictures_section, streets_section
from ranks_section import ranks_section
from reliability_section import reliability
from seasons_section import seasons_section
from small_files_section import draw, small_files
from speed_section import (
    all_tasks_section,
    execution_section,
    input_section,
    install_section,
    latency_section,
    startup_section,
    step_section,
    suite_section,
    transformer_section,
)
from zoo_section import families_table, zoo_table

from zoo.storage.manifest import LIST, sums


def results() -> str:
    """The whole of docs/results.md."""
    parts = [
        "# Results",
        "Written by `python benchmarks/reports/report.py` from what the named commands measured.",
        "Every entry, its size and its figures: [zoo.md](zoo.md).",
        pictures_section(),
        streets_section(),
        peft_section(),
        methods_section(),
        rooms_section(),
        seasons_section(),
        joint_section(),
        ranks_section(),
        networks_section(),
        step_section(),
        transformer_section(),
        ring_section(),
        execution_section(),
        latency_section(),
        all_tasks_section(),
        input_section(),
        startup_section(),
        install_section(),
        suite_section(),
        papers_section(),
    ]
    return "\n\n".join(parts) + "\n"


def zoo_page() -> str:
    """The whole of docs/zoo.md."""
    words = """# The zoo

Written by `python benchmarks/reports/report.py` from the registry. Parameters leave the heads out; `measured` is what
`zoo verify NAME` holds the packaged weights to, top-1 accuracy where nothing else is said; `reported` are a paper's own
figures. Entries that differ in rank alone share a line."""
    return f"{words}\n\n{zoo_table()}\n"


def readme(text: str) -> str:
    """The README with its table of the zoo, and the digest of the package's list of data, made anew."""
    digest = hashlib.sha256(sums().encode()).hexdigest()
    check = f"```bash\ncd FOLDER/OF/zoo && sha256sum --check --quiet {LIST} && sha256sum {LIST}\n{digest}  {LIST}\n```"
    return between(between(text, "zoo", families_table()), "digest", check)


def main() -> None:
    draw_methods()
    draw_sharing(ROOT / "docs" / "sharing")
    (ROOT / "docs" / "results.md").write_text(results(), encoding="utf-8")
    (ROOT / "docs" / "zoo.md").write_text(zoo_page(), encoding="utf-8")
    draw()
    for name, renewed in (
        ("README.md", readme),
        ("docs/deployment.md", deployment),
        ("docs/small-files.md", small_files),
        ("docs/reliability.md", reliability),
    ):
        path = ROOT / name
        path.write_text(renewed(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
