"""The part of docs/results.md that tells the papers' figures, and where they contradict themselves."""

from __future__ import annotations

from markdown_table import table

from zoo.catalog import papers
from zoo.catalog.registry import Registry, default_registry
from zoo.catalog.score import decathlon_score, scale

ONE_DECIMAL = ("FTN, Table 3", "TRMTL, Table 9", "TRMTL, Table 10")  # that figures are printed with; elsewhere two
PAPER = "https://arxiv.org/abs/2310.06124"


def papers_section() -> str:
    registry = default_registry()
    parts = [
        f"""## The papers' figures

Top-1 accuracy in per cent, in FTN's Table 4 mIoU and odsF in per cent, metres and degrees, and in Tables 12 and 13
the PSNR of the training pictures in decibels, as the [FTN paper]({PAPER}) and the two others print it. Nobody has rerun
the entries of these tables with this software yet: they need ImageNet weights, the datasets and a GPU. Their weights
are not published. Parameters are millions, for all tasks, heads left out: as printed, and counted by one rule, the
frozen backbone with its norms and for each task its increments and its norms. S is the decathlon score: as printed for
residual adapters, else against the row of full fine-tuning."""
    ]
    for source in papers.tables(registry):
        rows = [row if "S" in row else row | _score(row["model"]) for row in papers.table(source, registry)]
        shown = [{key: "–" if value is None else value for key, value in row.items()} for row in rows]
        parts.append(f"### {source}\n\n{table(shown)}")
    return "\n\n".join([*parts, contradictions(registry)])


def _score(name: str) -> dict[str, int]:
    registry = default_registry()
    entry = registry.entry(name) if name in registry.names() else None
    known = scale(entry, registry, "reported") if entry else None
    return {"S": round(decathlon_score(entry.reported.figures, known))} if known and entry and entry.reported else {}


def contradictions(registry: Registry) -> str:
    """Where what the paper prints cannot all be true."""
    counted = {name: (registry.entry(name).total_parameters or 0) / 1e6 for name in registry.names()}
    backbone = counted["resnet26-finetune-decathlon"] / 10  # itself, and one network for each of nine tasks
    multiple = {part: counted[f"resnet26-parallel_{part}-decathlon"] / backbone for part in ("early", "mid", "late")}
    off = [
        f"{row['model']} in {source} ({row['mean']} printed, {papers.mean_of(row):.2f})"
        for source in papers.tables(registry)
        for row in papers.table(source, registry)
        if row["mean"] is not None
        and abs(papers.mean_of(row) - row["mean"]) > (0.051 if source in ONE_DECIMAL else 0.0051)
    ]
    return f"""### Where the papers contradict themselves

- One network per task: Tables 1, 5 and 7 count the original backbone beside them (6× for five tasks, 10× for nine),
  Tables 2, 3 and 6 do not (6× for six). Counted here with it.
- Table 1 gives "FC and BN only" 23.52 M, hardly more than the backbone; five sets of norms make it
  {counted["resnet50-bn-sketch"]:.2f} M, and the FTN rows of the same table do hold them.
- Table 1 calls 23.95 M 1.004 times 23.5 M; it is 1.019 times.
- Table 7 gives FTN on nine tasks 11.23 M and 11.89 M, the totals of Table 4 for four tasks of the same network; nine
  tasks make {counted["resnet18-ftn-r1-decathlon"]:.2f} M and {counted["resnet18-ftn-r20-decathlon"]:.2f} M.
- Table 4 does not count the original backbone beside the four networks of "Single task". Its 17.51 M for series
  adapters are {counted["resnet18-series-nyud"]:.2f} M here, one after each adapted convolution, with a norm; the
  table takes them from another paper. The other rows are had by the common rule.
- Table 3 gives KAdaptation 80.7 K parameters per task. By the formula of Section 3.2 the query and value weights take
  {registry.entry("vit_b32_clip-kadaptation-r4-clip5").parameters.per_task:,} at R = 4 and K = 4; {_reachable()}
- The 87.9 M of Table 3's backbone count CLIP's projection of 768 to 512 dimensions, which is replaced by the
  classifiers; without it they are {registry.entry("vit_b32_clip-features-clip5").parameters.backbone / 1e6:.2f} M.
- FTN R=1 on DomainNet has 21.44 M in Table 2, and 21.45 M in Table 6.
- Fine-tuning on CUB reaches 83.37 in Table 1, and 83.32 in Table 8.
- Tables 8 and 10 leave out the tasks' norms, which are counted here; without them all totals are had, but for the
  49.02 M of efficientnet_b4 at R = 50 by CP, which make 56.12 M. Table 8's CP, TT and SVD leave the four downsampling
  convolutions out beside the stem.
- Table 11, of what the forms leave of ΔW in efficientnet_b4, repeats Table 9's figures of resnet50. Both are shown as
  printed; the norm of ΔW itself is 9.36 there.
- Appendix F gives a BigGAN at 128 pixels 71.4 M parameters; by the authors' code it has
  {registry.entry("biggan128-ftn-r50-seasons").parameters.backbone / 1e6:.2f} M. The 3.9 M of a season at R = 50 are
  {registry.entry("biggan128-ftn-r50-seasons").parameters.per_task / 1e6:.2f} M here. Table 13's second column is the
  FTN of Table 12.
- Table 6 gives "Fine-tuning" six times the parameters, and Appendix D speaks of a single model. It is taken here for
  six networks that start from the jointly trained one; no row of the table is that network itself.
- The supplement lists the numbers of classes of ImageNet-to-Sketch in another order than the domains; the datasets
  decide: flowers 102, wikiart 195, sketch 250, cars 196, cub 200.
- Residual adapters' Table 1 gives the adapters of the early, the mid and the late macro block alone twice the
  backbone's parameters each, as it does those of all three; counted, they have
  {multiple["early"]:.2f}, {multiple["mid"]:.2f} and {multiple["late"]:.2f} times.
- TRMTL's Table 1 gives its networks 16 K and 13 K parameters. Cores alone, at R = 5, make
  {1000 * counted["mlp-trmtl_410-mnist_odd_even"]:.1f} K and {1000 * counted["mlp-trmtl_420-mnist_odd_even"]:.1f} K; the
  two differ by 36 R² = 900, not by 3 K. Two heads of five outputs would add 2.6 K to each.
- TRMTL's third convolution for Omniglot has the output modes 4·2·2·2 in Table 8 and 4·4·2·2 in the text; the former
  fit the 23,328 inputs of the layer after it. The last layer has 50 outputs in the text and 10 in the table.
- TRMTL's LSTM has input modes 8·20·20·18 = 57,600, which are 160×120 RGB pixels; the text names 120×180.
- Means that are not the means of their row: {"; ".join(off)}."""


def _reachable() -> str:
    """Whether KAdaptation's formula, 2 L R d + K³ for each kind of weight, can give what Table 3 prints."""
    sizes = {
        (kinds, rank, k): kinds * (2 * 12 * rank * 768 + k**3)
        for kinds in (1, 2) for rank in range(1, 5) for k in range(1, 64)
    }  # fmt: skip
    found = [f"{kinds} kinds, R = {r}, K = {k}" for (kinds, r, k), n in sizes.items() if round(n / 1000, 1) == 80.7]
    return f"80.7 K are had with {'; '.join(found)}." if found else "no R up to 4 and K up to 63 give 80.7 K."
