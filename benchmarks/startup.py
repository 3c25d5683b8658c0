"""How long commands take from start to end, against the libraries that they cannot do without.

`zoo --help` and `zoo ls` against importing three; `zoo predict` against a network of timm's on an image of zeros. The
extra `imagenet` is needed.

python benchmarks/startup.py [--rounds 15] [--json FILE]
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
from record import save

from zoo.cli.tables import show
from zoo.verification.timing import interleaved, medians, ratio

ROOT = Path(__file__).parent.parent
NETWORK = """import torch, timm
with torch.no_grad():
    timm.create_model("tf_efficientnet_lite0").eval()(torch.zeros(1, 3, 128, 128))"""
ENTRY = "efficientnet_lite0-ftn-r4-emoji"
COMMANDS = [  # the first of a group is what the others are held against
    {
        "import click, yaml, rich": ["-c", "import click, yaml, rich"],
        "zoo --help": ["-m", "zoo", "--help"],
        "zoo ls": ["-m", "zoo", "ls"],
    },
    {
        "import torch, timm; EfficientNet-Lite0 on an image": ["-c", NETWORK],
        f"zoo predict {ENTRY}": ["-m", "zoo", "predict", ENTRY, str(ROOT / "docs" / "sketch.png"), "--task", "noto"],
    },
]


@click.command()
@click.option("--rounds", default=15, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the figures here.")
def main(rounds: int, json_file: Path | None) -> None:
    def runner(words: list[str]) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)

    rows = []
    for group in COMMANDS:
        seconds = interleaved({name: runner(words) for name, words in group.items()}, rounds)
        base = next(iter(group))
        rows += [
            {"command": name, "ms": round(1000 * s), "ratio": round(ratio(seconds, name, base), 2)}
            for name, s in medians(seconds).items()
        ]
    show(rows)
    save(json_file, rows)


if __name__ == "__main__":
    main()
