"""One training step on CLIP's ViT-B/32: FTN on attention against PEFT's LoRA of the same rank on the same layers.

    python benchmarks/transformer_step.py [--rounds 15] [--device cuda]

Needs `pip install ftn-zoo[bench]`. Prints the median step time of each and the ratio to its peer, round by round.
"""

from pathlib import Path

import click
import timm
import torch
from peft import LoraConfig, get_peft_model
from record import save
from torch import nn
from training_step import CLASSES, step

import zoo
from zoo.verification.timing import interleaved, medians, ratio

PEERS = {"ftn_qv": "qkv", "lora": "qkv", "ftn_o": "proj"}  # of each method, the layers of every attention


def vit() -> nn.Module:
    return timm.create_model("vit_base_patch32_clip_224", num_classes=CLASSES)


@click.command()
@click.option("--rounds", default=15, show_default=True)
@click.option("--batch", default=16, show_default=True)
@click.option("--rank", default=4, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the figures here.")
def main(rounds: int, batch: int, rank: int, device: str, json_file: Path | None) -> None:
    torch.manual_seed(0)
    images = torch.randn(batch, 3, 224, 224, device=device)
    plain = vit().to(device)
    candidates = {"fine-tuning": step(plain, plain, images)}
    for method in PEERS:
        model = zoo.adapt(vit(), {"task": CLASSES}, method, rank=rank).to(device)
        candidates[method] = step(lambda x, model=model: model(x, task="task"), model, images)
    for layer in dict.fromkeys(PEERS.values()):
        named = [f"blocks.{block}.attn.{layer}" for block in range(12)]
        peft = get_peft_model(vit(), LoraConfig(r=rank, target_modules=named, modules_to_save=["head"])).to(device)
        candidates[f"PEFT LoRA on {layer}"] = step(peft, peft, images)
    seconds = interleaved(candidates, rounds, warmup=2)
    rows = [
        {
            "method": name,
            "ms per step": round(1000 * value),
            "to fine-tuning": round(ratio(seconds, name, "fine-tuning"), 3),
            "to PEFT LoRA": round(ratio(seconds, name, f"PEFT LoRA on {PEERS[name]}"), 3) if name in PEERS else None,
        }
        for name, value in medians(seconds).items()
    ]
    for row in rows:
        click.echo("  ".join(f"{key} {value}" for key, value in row.items() if value is not None))
    save(json_file, rows, device)


if __name__ == "__main__":
    main()
