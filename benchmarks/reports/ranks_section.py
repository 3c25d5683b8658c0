"""What docs/results.md says of accuracy against rank."""

from __future__ import annotations

from figures import measured_on, read
from markdown_table import table

from zoo.catalog.registry import default_registry
from zoo.search.ranks import family


def ranks_section() -> str:
    found = read("rank_search")
    entry = default_registry().entry(found["entry"])
    ranks = list(family(entry, default_registry()))
    rows = [
        {
            "task": choice["task"],
            **{f"R={r}, held out": _percent(choice["tried"].get(str(r))) for r in ranks},
            "chosen": choice["rank"],
            "test": _percent(choice["accuracy"]),
            f"test at R={ranks[-1]}": _percent((entry.measured or {})[choice["task"]]),
            "saved": f"{1 - choice['parameters'] / choice['largest_parameters']:.0%}",
        }
        for choice in found["choices"]
    ]
    own, most = (sum(c[key] for c in found["choices"]) for key in ("parameters", "largest_parameters"))
    return f"""## Accuracy against rank

![Accuracy of FTN on the six domains of shapes at ranks 1 to 16, and with norms alone](ranks.png)

`zoo plot ranks "resnet20-ftn-*-shapes" -o docs/ranks` ([SVG](ranks.svg)), from the packaged entries: the paper's
Figure 2.

`python benchmarks/rank_search.py --out DIR` runs `zoo train {found["entry"]} --rank auto`: for each task the largest
rank is trained with a fifth of the training images held out, then the others from the smallest on, until one comes
within {found["margin"]:g} point of the largest on the held-out images; that rank is then trained on all training
images. Accuracy in per cent. In all {own:,} parameters instead of {most:,}: {1 - own / most:.0%} are saved. With 144
held-out images of each domain one point is one or two images, so a choice between neighbouring ranks is partly
chance. {measured_on("rank_search")}

{table(rows)}"""


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
