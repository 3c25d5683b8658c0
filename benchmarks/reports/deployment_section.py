"""What docs/deployment.md says that the forms take."""

from __future__ import annotations

from figures import measured_on, read
from markdown_table import between, table

MIXED = """A batch of rows of several tasks against one fused task at the same batch, in torch and in ONNX Runtime (six
tasks); what is kept whole for each task; and the difference of a row from its fused network, relative to the largest
output:"""

INT8 = """Means over the tasks of an entry that are measured alike; what is lost is in points, and of errors (RMSE, mean
angle) in per cent, below zero where int8 does better. Times are ratios to float32's, medians over the tasks."""


def deployment(text: str) -> str:
    """The page with its tables made anew."""
    rows = read("deployment")
    columns = list(rows["forms"][0])
    forms = [{key: row.get(key, "–") for key in columns} for row in rows["forms"]]
    swaps = [
        f"{row['network']} takes {row['ms']:.0f} ms, {row['passes']:.2f} of a pass of one image"
        for row in rows["forms"]
        if row["form"] == "swap"
    ]
    words = f"""{table(sorted(forms, key=lambda row: row["network"] != forms[0]["network"]))}

Times are ratios to the whole graph's, medians of {rows["rounds"]} rounds in turn: to open one session, and to run a
batch. Memory is what a process grows by at its peak that serves all six. A swap is torch's: it takes what the backbone
and the adapters take, and then runs the fused network; one of {"; one of ".join(swaps)}. {measured_on("deployment")}"""
    text = between(text, "forms", words)
    mixed = [{key: "–" if value is None else value for key, value in row.items()} for row in rows["mixed"]]
    text = between(text, "mixed", f"{MIXED}\n\n{table(mixed)}")
    text = between(text, "profile", table(read("deployment_profile")))
    return between(text, "int8", f"{table(read('int8'))}\n\n{INT8} {measured_on('int8')}")
