"""Which layers of a network a method adapts, which norms tasks own, and which module is the head."""

from __future__ import annotations

import fnmatch
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from zoo.backbones.generator import Generator
from zoo.errors import OptionError
from zoo.increments import Method, Role, get_method
from zoo.increments.forms import CONVOLUTIONS, WEIGHTED
from zoo.models.attention import KINDS, MAKES, projections, reads_weight

log = logging.getLogger(__name__)
_TOLD: set[str] = set()  # classes of networks whose left out layers have been told of
PLACEMENTS = ("all", "early", "mid", "late", "half")
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
# What classifiers are called.
CLASSIFIERS = ("fc", "head", "heads", "head_dist", "classifier", "last_linear", "logits", "output")
# These modules of torch read their layers' weights without calling the layers (torch's attention always, its encoder
# layers on their fast path), so nothing put in a layer's place would act.
READERS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)


@dataclass(frozen=True)
class Layers:
    """Module paths within one backbone."""

    adapted: Mapping[str, Role]
    norms: tuple[str, ...]
    heads: tuple[str, ...]
    whole: tuple[str, ...] = ()  # other modules that are all of a task's own
    may_rest: tuple[str, ...] = ()  # patterns, as in Placement


@dataclass(frozen=True)
class Placement:
    """A choice of layers by glob patterns over module paths; what is left None follows the papers.

    Attributes:
        layers: the convolutions (of one to three dimensions, transposed ones too) and Linear layers to adapt. By
            default all but the classifier and, unless the method adapts it too, the stem: the first convolution (FTN,
            Section 4.1.1, by its counts).
        norms: the norms that each task owns. By default all, for a method with task norms, else none.
        head: the path of the classifier, or of a module that is all of a task's own, such as a decoder. By default
            what timm declares, else the last layer with a weight. Empty, and by default of a generator: there is none.
        whole: other modules that are all of a task's own. By default, and only of a generator whose layers are adapted,
            the Linear layers and embeddings (FTN, Appendix F), but for those in norms.
        placement: which of the layers to adapt (residual adapters, Section 3.2): "all"; "early", "mid" or "late", the
            first third of the stages, the last, or those between; "half", the second convolution of each block, a block
            being a module with several convolutions as its children.
        projections: of attention modules, those to adapt: "query", "key", "value", "output". By default the method's
            own, such as query and value for "ftn_qv" and "lora"; but a layer that `layers` names is adapted whole
            by a method that can.
        may_rest: adapted layers, norms or heads that need not be called in every pass, such as auxiliary heads, which
            only training runs, and experts. Any other that a task's first pass does not call is an error.
    """

    layers: Sequence[str] | None = None
    norms: Sequence[str] | None = None
    head: str | None = None
    placement: str = "all"
    projections: Sequence[str] | None = None
    may_rest: Sequence[str] | None = None
    whole: Sequence[str] | None = None

    def __post_init__(self) -> None:
        for name in ("layers", "norms", "projections", "may_rest", "whole"):
            if isinstance(getattr(self, name), str):
                raise OptionError(f"{name} must be a list, such as [{getattr(self, name)!r}].")

    def find(self, backbone: nn.Module, method: Method) -> Layers:
        """The layers of `backbone` that this choice means.

        Raises:
            OptionError: no layer matches a pattern, or the one that does cannot be adapted.
        """
        modules = dict(backbone.named_modules())
        called = {p: m for p, m in modules.items() if p and not _reads(modules, p)}
        weighted = [path for path, module in called.items() if isinstance(module, WEIGHTED)]
        _check_layers(backbone, weighted)
        heads = self._heads(backbone, weighted)
        if odd := [head for head in heads if not _weighted_below(called.get(head))]:
            raise OptionError(
                f"The head {odd[0]!r} is or holds no Conv2d or Linear layer, nor another convolution; "
                f"such are {_some(weighted)}."
            )
        whole = self._whole(backbone, called, heads, method)
        apart = tuple(f"{path}." for path in (*heads, *whole))
        norms = [p for p, module in called.items() if isinstance(module, NORMS) and not f"{p}.".startswith(apart)]
        if self.norms is not None:
            norms = _match(self.norms, norms, "norms")
        elif not method.norms:
            norms = []
        inside = tuple(f"{path}." for path in (*heads, *norms, *whole))
        body = {path: called[path] for path in weighted if not f"{path}.".startswith(inside)}
        wanted = self._wanted(method)
        found = _of_attention(backbone, body, wanted) if wanted else {}
        stem = method.stem or isinstance(backbone, Generator)  # whose first convolution sees no image
        adapted = self._adapted(body, found, method, stem) if method.increment else {}
        if method.increment and not adapted:
            raise OptionError(
                f"The method {method.name!r} finds nothing to adapt in {type(backbone).__name__}: {method.summary}. "
                f"Name layers with layers=…, such as {_some(list(body)) or 'none'}, or take another method."
            )
        rests = _match(self.may_rest, [*adapted, *norms, *heads, *whole], "layers, norms and heads of a task")
        _tell_what_is_read(backbone, [p for p, m in modules.items() if isinstance(m, WEIGHTED) and p not in called])
        return Layers(adapted, tuple(norms), heads, tuple(whole), tuple(self.may_rest or ()) if rests else ())

    def _heads(self, backbone: nn.Module, weighted: Sequence[str]) -> tuple[str, ...]:
        if self.head:
            return (self._head(backbone),)
        if self.head == "" or isinstance(backbone, Generator):
            return ()
        return _declared_heads(backbone) or (_last(backbone, weighted),)

    def _whole(
        self, backbone: nn.Module, called: Mapping[str, nn.Module], heads: Sequence[str], method: Method
    ) -> list[str]:
        """The modules that each task owns beside norms and heads; raises OptionError for what lies in those."""
        prior = ["prior"] if isinstance(backbone, Generator) else []
        in_norms = tuple(f"{path}." for path, module in called.items() if isinstance(module, NORMS))
        if self.whole is None:
            own = [p for p, m in called.items() if isinstance(m, nn.Linear | nn.Embedding)]
            return prior + [p for p in own if prior and method.increment and not p.startswith(in_norms)]
        found = _match(self.whole, [path for path in called if path not in prior], "modules")
        found = [path for path in found if not path.startswith(tuple(f"{other}." for other in found))]  # in another
        for path in found:
            if any(f"{path}.".startswith(f"{h}.") or f"{h}.".startswith(f"{path}.") for h in heads):
                raise OptionError(f"{path} and the head {heads[0]} overlap, and each task has a head of its own.")
            if path.startswith(in_norms):
                raise OptionError(f"{path} lies in a norm: name the norm, with norms=…, and a task owns all of it.")
        return prior + found

    def _head(self, backbone: nn.Module) -> str:
        """The named head, by the first of the paths that it may have."""
        places = dict(backbone.named_modules(remove_duplicate=False))
        found = [path for path, module in backbone.named_modules() if module is places.get(self.head or "")]
        return found[0] if found else self.head or ""

    def _wanted(self, method: Method) -> tuple[str, ...]:
        """The projections to adapt; none where whole layers are."""
        if self.projections is None:
            return () if self.layers is not None and method.whole else method.projections
        strange = [kind for kind in self.projections if kind not in KINDS]
        if strange or not self.projections:
            raise OptionError(f"projections must be some of {', '.join(KINDS)}, not {list(self.projections)}.")
        if not method.projections:
            raise OptionError(f"The method {method.name!r} adapts whole layers; it takes no projections.")
        return tuple(self.projections)

    def _adapted(
        self, body: Mapping[str, nn.Module], attention: Mapping[str, Role], method: Method, stem: bool
    ) -> dict[str, Role]:
        """The layers to adapt, of those that no task owns whole, and what each is."""
        convolutions = [path for path, module in body.items() if isinstance(module, CONVOLUTIONS)]
        paths = list(body) if method.linear else convolutions
        if not stem:
            paths = [path for path in paths if path not in convolutions[:1]]
        if attention:
            paths = list(attention)
        if self.layers is not None:
            paths = _match(self.layers, list(attention or body), "layers to adapt")
        second = frozenset(_second_of_blocks(convolutions))
        paths = _placed(self.placement, paths, second)
        computed = [(p, n) for p in paths for n in ("weight", "bias") if n not in body[p]._parameters]
        if computed:
            raise OptionError(
                f"{computed[0][0]} computes its {computed[0][1]} (by weight norm, pruning or a parametrization); "
                "remove that first, such as by torch.nn.utils.prune.remove, or leave the layer out with layers=…."
            )
        return {path: attention.get(path, Role(second_of_block=path in second)) for path in paths}


def _reads(modules: Mapping[str, nn.Module], path: str) -> bool:
    """Whether a module is used by its parent without being called, so that nothing put in its place would act."""
    above, _, name = path.rpartition(".")
    return isinstance(modules[above], READERS) or reads_weight(modules[above], name)


def _of_attention(backbone: nn.Module, body: Mapping[str, nn.Module], wanted: Sequence[str]) -> dict[str, Role]:
    """The layers that make one of the wanted projections, and by which rows; raises OptionError if there are none."""
    found = {}
    for path, projection in projections(backbone).items():
        rows = {kind: rows for kind, rows in projection.rows.items() if kind in wanted}
        if rows and path in body:
            found[path] = Role(heads=projection.heads, rows=rows)
    if missing := [kind for kind in wanted if not any(kind in role.rows for role in found.values())]:
        raise OptionError(
            f"{type(backbone).__name__} has no attention whose {' and '.join(missing)} could be adapted. Looked for: "
            f"modules with a number of heads and Linear layers called {', '.join(MAKES)}, which they call. "
            "(Left out are modules that read a layer's weight without calling it, such as torch's MultiheadAttention, "
            "and those whose packed layer has the rows in another order.)"
        )
    return found


def _placed(placement: str, paths: list[str], second: frozenset[str]) -> list[str]:
    """Those of the layers that a placement means."""
    if placement not in PLACEMENTS:
        raise OptionError(f"The placement must be one of {', '.join(PLACEMENTS)}, not {placement!r}.")
    if placement == "all":
        return paths
    if placement == "half":
        if not any(path in second for path in paths):
            raise OptionError(
                "No block has several convolutions as children, to take the second of. Name them: layers=…."
            )
        return [path for path in paths if path in second]
    stages = list(dict.fromkeys(_stage(path) for path in paths))
    if len(stages) < 3:
        raise OptionError(
            f"The placement {placement!r} needs three stages at least, not {_some(stages)}. Name layers with layers=…."
        )
    third = len(stages) // 3
    chosen = {"early": stages[:third], "mid": stages[third:-third], "late": stages[-third:]}[placement]
    return [path for path in paths if _stage(path) in chosen]


def _stage(path: str) -> str:
    """The stage that a layer belongs to: its path up to the first number, such as `layer1` or `stages.2`."""
    match = re.match(r"(?:[^.]*\.)*?[^.]*\d+(?=\.|$)", path)
    return match[0] if match else path


def _second_of_blocks(convolutions: list[str]) -> list[str]:
    """The second convolution of each block, the fourth, …, a block being a module with several of them as children."""
    blocks: dict[str, list[str]] = {}
    for path in convolutions:
        blocks.setdefault(path.rpartition(".")[0], []).append(path)
    return [path for block in blocks.values() for path in block[1::2]]


def _declared_heads(backbone: nn.Module) -> tuple[str, ...]:
    """The heads' paths as timm's models state them; none where one of them is not a layer and holds none."""
    declared = (getattr(backbone, "pretrained_cfg", None) or {}).get("classifier") or ()
    heads = (declared,) if isinstance(declared, str) else tuple(declared)
    modules = dict(backbone.named_modules())
    return heads if all(_weighted_below(modules.get(head)) for head in heads) else ()


def _check_layers(backbone: nn.Module, weighted: Sequence[str]) -> None:
    """Raise OptionError for a network without layers to adapt, or with layers whose sizes are not known yet."""
    name = type(backbone).__name__
    if lazy := [n for n, p in backbone.named_parameters() if isinstance(p, nn.parameter.UninitializedParameter)]:
        raise OptionError(f"{lazy[0]} of {name} has no size yet: run the network once on an input, then adapt it.")
    limited = [p for p, m in backbone.named_modules() if isinstance(m, nn.Embedding) and m.max_norm]
    if limited:
        raise OptionError(f"{limited[0]} writes to its weight in each pass: limit it once, then set max_norm to None.")
    if not weighted:
        raise OptionError(
            f"{name} has no Conv2d or Linear layer inside it to adapt, nor a convolution of another form."
        )


def _last(backbone: nn.Module, weighted: Sequence[str]) -> str:
    """The last layer with a weight, which is a network's classifier; OptionError if it shows that it is none."""
    if weighted[-1].partition(".")[0] in CLASSIFIERS:
        return weighted[-1]
    modules = dict(backbone.named_modules())
    after = list(modules)[list(modules).index(weighted[-1]) + 1 :]
    last, later = modules[weighted[-1]], [modules[path] for path in after]
    removed = next((p for p in after if isinstance(modules[p], nn.Identity) and p.split(".")[0] in CLASSIFIERS), None)
    channels = getattr(last, "out_channels", getattr(last, "out_features", None))
    # What a Linear layer of the network itself gives may be normalised; what one inside a block gives is no class.
    inner: tuple[type[nn.Module], ...] = (nn.LayerNorm, nn.GroupNorm) if "." in weighted[-1] else ()
    kinds = NORMS if isinstance(last, CONVOLUTIONS) else inner
    if not removed and not any(_channels(norm) == channels for norm in later if isinstance(norm, kinds)):
        return weighted[-1]
    where, size = f"network.{removed or 'head'}", "features" if removed else channels
    raise OptionError(
        f"{type(backbone).__name__} has no classifier: its last layer with a weight, {weighted[-1]}, makes features. "
        f"Give it one before it is adapted, such as {where} = torch.nn.Linear({size}, 1), or name the layer that "
        "tasks replace: head=…."
    )


def _channels(norm: nn.Module) -> int | None:
    shape = getattr(norm, "normalized_shape", None)
    found: int | None = shape[-1] if shape else getattr(norm, "num_features", getattr(norm, "num_channels", None))
    return found


def _tell_what_is_read(backbone: nn.Module, paths: Sequence[str]) -> None:
    """Say, once of each class of networks, which layers are left out because their parents read them."""
    kind = type(backbone).__name__
    if paths and kind not in _TOLD:
        _TOLD.add(kind)
        log.warning(
            "%s reads %s and does not call these layers: they are left out, and stay frozen.", kind, _some(paths)
        )


def heads_of(backbone: nn.Module) -> Sequence[str]:
    """The paths of a network's classifiers."""
    return Placement().find(backbone, get_method("features")).heads


def _weighted_below(module: nn.Module | None) -> bool:
    """Whether a module is a layer that can be a head, or holds one."""
    return module is not None and any(isinstance(part, WEIGHTED) for part in module.modules())


def _match(patterns: Sequence[str] | None, paths: Sequence[str], what: str) -> list[str]:
    patterns = patterns or ()
    for pattern in patterns:
        if not fnmatch.filter(paths, pattern):
            raise OptionError(f"The pattern {pattern!r} matches none of the {what}; such are {_some(paths)}.")
    return [path for path in paths if any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)]


def _some(paths: Sequence[str]) -> str:
    return ", ".join(paths[:8]) + (f", … ({len(paths)} in all)" if len(paths) > 8 else "")
