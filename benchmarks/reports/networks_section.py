"""The section on networks that the zoo was not made for."""

from __future__ import annotations

from collections import Counter

from figures import measured_on, read
from markdown_table import table


def networks_section() -> str:
    rows = read("any_network")
    counted = Counter((row["method"], row["result"]) for row in rows)
    methods, results = (sorted({row[key] for row in rows}) for key in ("method", "result"))
    shares = [{"method": m, **{result: counted[m, result] for result in results}} for m in methods]
    others = [
        {key: row[key].replace("|", "\\|") for key in ("model", "method", "result", "why")}
        for row in rows
        if row["result"] != "works"
    ]
    names = sorted({row["model"] for row in rows if row["result"] == "works"})
    words = f"""## Any network

`python benchmarks/any_network.py`: the smallest model of each of timm's model files and of each of torchvision's
families, at its smallest input, each in a process of its own with 6 GB and two minutes. It works if fused is unfused to
1e-5 of the largest output (or in double precision, where rounding grows), every parameter of the task gets a gradient
and nothing frozen moves. {measured_on("any_network")}"""
    tried = f"Work: {', '.join(names)}."
    return "\n\n".join([words, table(shares), "What does not work, and why:", table(others), tried])
