"""The part of docs/results.md on seasons that one generator makes."""

from __future__ import annotations

import itertools
import statistics
from typing import Any

from figures import measured_on, read, spread
from markdown_table import table

from zoo.catalog.registry import default_registry


def seasons_section() -> str:
    rows = [_row(name) for name in dict.fromkeys(row["entry"] for row in read("seasons"))]
    backbone = default_registry().backbone("zoo/biggan32x0.125@landscapes")
    assert backbone is not None
    summer = (backbone.measured or {})["summer"]
    seeds = len({row["seed"] for row in read("seasons")})
    return f"""## Seasons that one generator makes

PSNR in decibels of the 50 test pictures of each season of `landscapes`, of latents found with all weights frozen: mean
and standard deviation of {seeds} seeds; "training" is the mean over the seasons of the training pictures with the
latents found beside the weights, as the FTN paper's Tables 12 and 13 have it. All begin with one generator of summers,
which has {summer:.1f} dB on those. KID is the kernel distance between drawn and training pictures, in features of
`zoo/resnet20@shapes`: it compares these rows with each other, and with nothing else.
`python benchmarks/seasons.py --out DIR`. {measured_on("seasons")}

{table(sorted(rows, key=lambda row: row["parameters of a season"]))}

Table 12's order: FTN near a generator of each season's own, at a part of its parameters. Table 13's: more with the
rank. The second {_order()}"""


def _row(name: str) -> dict[str, Any]:
    own = [row for row in read("seasons") if row["entry"] == name]
    entry, seeds = default_registry().entry(name), sorted({row["seed"] for row in own})
    tests = {task: [row["test"] for row in own if row["task"] == task] for task in entry.tasks}
    return {
        "model": name,
        "parameters of a season": own[0]["parameters"],
        "of the generator": f"{100 * own[0]['parameters'] / entry.parameters.backbone:.0f} %"
        if entry.parameters
        else "",
        "kB": round(own[0]["bytes"] / 1000),
        **{task: spread(figures, 2) for task, figures in tests.items()},
        "training": spread([_mean(own, seed, "train") for seed in seeds], 2),
        "KID": spread([_mean(own, seed, "kid") for seed in seeds], 2),
    }


def _mean(rows: list[dict[str, Any]], seed: int, key: str) -> float:
    """The mean over the seasons, with one seed."""
    return statistics.mean(row[key] for row in rows if row["seed"] == seed)


def _order() -> str:
    """What shows of the order of Tables 12 and 13."""
    means = {
        name: statistics.mean(row["train"] for row in read("seasons") if row["entry"] == name)
        for name in dict.fromkeys(row["entry"] for row in read("seasons"))
    }
    ranks = sorted((entry.rank or 0, means[name]) for name in means if (entry := default_registry().entry(name)).rank)
    rises = all(low[1] < high[1] for low, high in itertools.pairwise(ranks))
    apart = means["biggan32-single-landscapes"] - ranks[-1][1]
    side = "behind" if apart > 0 else "ahead of"
    return (
        f"{'shows' if rises else 'does not show'} in the training pictures: "
        f"{', '.join(f'{mean:.2f} dB at R = {rank}' for rank, mean in ranks)}.\nIn the first, R = {ranks[-1][0]} is "
        f"{abs(apart):.2f} dB {side} every weight (the paper: 0.14 dB behind at R = 50, with 5.6 % of the parameters)."
    )
