"""What docs/results.md says of time: of steps, of inference, of loading images, of starting and of testing."""

from __future__ import annotations

from figures import measured_on, read
from markdown_table import table


def all_tasks_section() -> str:
    return f"""## All tasks in one pass

`python benchmarks/all_tasks.py`: `model(images)` against a call for each of four dense tasks, unfused, in turn in one
process; medians of the ratio, below 1 where one pass is faster. The calls are given the images as they come, and again
with their channels last, the layout that the one pass takes by itself. {measured_on("all_tasks")}

{table(read("all_tasks"))}"""


def step_section() -> str:
    blocks = []
    for name, words in (
        ("training_step_channels_last", "channels-last, as `zoo train` runs"),
        ("training_step", "contiguous"),
    ):
        rows = [
            {
                "network": f"{row['model']} R={row['rank']}",
                **{key: f"{row['ms'][key]:.0f} ms ({row['ratio'][key]:.2f})" for key in row["ms"]},
            }
            for row in read(name)
        ]
        blocks.append(f"Memory format {words}:\n\n{table(rows)}")
    words = """## Training step

`python benchmarks/training_step.py [--channels-last]`: one step (forward, backward, SGD) at batch 16 and 160 px;
medians, and in brackets the median ratio to full fine-tuning, round by round in one process. PEFT's LoRA has the same
rank on all the same layers, and trains norms and head too.
"""
    return "\n\n".join([words + measured_on("training_step"), *blocks])


def transformer_section() -> str:
    rows = [{k: "–" if v is None else v for k, v in row.items()} for row in read("transformer_step")]
    return f"""## Training step on a transformer

`python benchmarks/transformer_step.py`: one step (forward, backward, SGD) on CLIP's ViT-B/32 at batch 16, rank 4;
medians and median ratios, round by round in one process. PEFT's LoRA adapts the same layers, all of a packed one.
{measured_on("transformer_step")}

{table(rows)}"""


def latency_section() -> str:
    rows = [{**row, "model": f"`{row['model']}`"} for row in read("latency")]
    return f"""## Latency of fused networks

`python benchmarks/latency.py`: milliseconds per batch and the ratio to the plain backbone in the same runtime; timed in
turn in one process, medians. Unfused is the model with all increments in place.
{measured_on("latency")}

{table(rows)}"""


def startup_section() -> str:
    return f"""## Start-up of the command line

`python benchmarks/startup.py`: whole processes in turn, medians. {measured_on("startup")}

{table(read("startup"))}"""


def execution_section() -> str:
    return f"""## Precision, memory layout, torch.compile

`python benchmarks/execution.py --out DIR`: the flags of `zoo train`, their effect on the time of a step (FTN,
resnet34 R=40, batch 16, 160 px; medians, in turn in one process) and on the accuracy of
`zoo train resnet20-ftn-r8-shapes --task quickdraw`. fp16 needs a GPU and has not been measured.
{measured_on("execution")}

{table(read("execution"))}"""


BESIDE = """`--data-root DATA`: what loading costs beside training EfficientNet-Lite0 at 128 px on one core, in
milliseconds for each image: decoded each time, from the cache of `--cache`, and the training itself."""


def input_section() -> str:
    found = read("input_pipeline")
    gpu, beside = found["gpu images/s"], found.get("beside training")
    known = (
        f"The GPU trains resnet50 R=50 on {gpu:.0f} images/s."
        if gpu
        else "What a GPU needs has not been measured here."
    )
    return f"""## Input pipeline

`python benchmarks/input_pipeline.py`: JPEG files of 500 × 375 pixels to normalised 224 × 224 training inputs, on one
core, in turn in one process; `zoo train --workers N` spreads it over N. {known} {measured_on("input_pipeline")}

{table(found["pipelines"])}""" + (f"\n\n{BESIDE}\n\n{table(beside)}" if beside else "")


def suite_section() -> str:
    found = read("suite")
    runs = [
        {
            "run": name,
            "tests": run["tests"] or "–",
            "wall": f"{run['wall'] / 60:.1f} min",
            "processor": f"{run['processor'] / 60:.1f} min",
        }
        for name, run in found.items()
    ]
    now = [run for name, run in found.items() if name.endswith("0.2.0")]
    wall, processor = (sum(run[key] for run in now) / 60 for key in ("wall", "processor"))
    slowest = {name: run["slowest"][:20] for name, run in found.items() if run["slowest"]}
    blocks = [
        f"### The slowest of `{name}`\n\n{table([{'s': row['seconds'], 'test': row['test']} for row in rows])}"
        for name, rows in slowest.items()
    ]
    total = f"Of 0.2.0 together, which is `.ci/run` without installing: {wall:.1f} min, {processor:.1f} of a processor."
    words = f"""## The test suite

`python benchmarks/suite.py --json FILE NAME=LOG …`, from the logs of `time make test` and the like, with
`PYTEST_ADDOPTS=--durations=20`. 0.1.0 was run with one thread, one test after another; 0.2.0 as the Makefile does, on
two workers. {measured_on("suite")}"""
    return "\n\n".join([words, table(runs), total, *blocks])


def install_section() -> str:
    return f"""## Installing

`python benchmarks/install.py NAME=CHECKOUT …`: `pip install CHECKOUT` into a new virtual environment, packages from
pip's cache; what the environment then takes on disk. {measured_on("install")}

{table(read("install"))}"""
