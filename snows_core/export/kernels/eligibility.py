"""Which layers can be computed with sparse kernels, where, and which rule decides; and why 2:4 need not be faster."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from snows_core.errors import closest, integer, invalid_argument, one_of, shown
from snows_core.export.kernels.held_pattern import Held, held_by, held_pattern
from snows_core.export.kernels.rule_file import rules
from snows_core.export.kernels.rules import DTYPES, Backend, Facts, Rule, Target
from snows_core.export.kernels.weighted_layers import LINEAR, ONE_BY_ONE, WeightedLayer, weighted_layers
from snows_core.masks.patterns import NM, parse_pattern
from snows_core.result import PruneResult
from snows_core.settings import SparsityPattern
from snows_core.tables import WIDTH, table

if TYPE_CHECKING:
    import pandas as pd

ASSUMED = "a100"
"""GPU that is asked about where none is at hand and none is named."""
_THEN_NO = ": then no, "
_MAKERS = re.compile("nvidia|tesla|geforce|jetson|agx|[^a-z0-9.]")


@dataclass(repr=False)
class Eligibility:
    """Where the layers of a network can be computed with sparse kernels.

    Attributes:
        table: one row a layer: layer, kind, shape, weights, zeros (share), pattern (held by its weights),
            multiplications (of an image; where images were given), and for each backend (cusparselt, cutlass, tensorrt)
            "yes" or "no", ``<backend>_rule`` (the one that decides; empty for yes), ``<backend>_reason``,
            ``<backend>_notes``.
        gpu: what was asked about, in words.
        target: the same, as rules read it.
        words: sentences: layers, weights and multiplications that each backend takes; what the patterns mean.
        backends: key to name.
        sources: key of a backend and name of a rule to what the rule was read from.
    """

    table: pd.DataFrame
    gpu: str
    target: Target
    words: list[str]
    backends: Mapping[str, str]
    sources: Mapping[tuple[str, str], Sequence[str]]

    def __repr__(self) -> str:
        shown_table = self.table[["layer", "kind", "shape", "pattern"]].copy()
        shown_table["layer"] = [name or "(the model)" for name in shown_table["layer"]]
        for key, name in self.backends.items():
            cells = zip(self.table[key], self.table[f"{key}_rule"], strict=True)
            shown_table[name] = [f"{answer} ({rule})" if rule else answer for answer, rule in cells]
        lines = [f"{self.gpu}, weights in {self.target.dtype}", table(shown_table)]
        return "\n".join([*lines, *self._reasons(), *_wrapped(self.words)])

    def _reasons(self) -> list[str]:
        """Return one paragraph for each rule that decided, with one of its layers as an example, and their sources."""
        found, cited, said = dict[tuple[str, str, str], list[int]](), list[str](), list[str]()
        for key in self.backends:
            for place, (rule, reason) in enumerate(
                zip(self.table[f"{key}_rule"], self.table[f"{key}_reason"], strict=True)
            ):
                if rule:  # what differs from layer to layer, sizes above all, is shown of the first
                    same = reason.partition(_THEN_NO)[0] if rule == "layer" else ""
                    found.setdefault((key, rule, same), []).append(place)
        for (key, rule, _), places in found.items():
            name = self.table["layer"].iloc[places[0]] or "the model"
            count = f"{len(places)} layers, for instance {name}" if len(places) > 1 else name
            reason = self.table[f"{key}_reason"].iloc[places[0]]
            said.append(f"{self.backends[key]}, {rule}: {reason} ({count}) {_numbers(self.sources[key, rule], cited)}")
        return [*_wrapped(said), *_listed(cited)]


def eligibility(
    model: nn.Module | PruneResult,
    images: Tensor | Iterable[Any] | None = None,
    *,
    gpu: str | float | None = None,
    dtype: str | torch.dtype = "float16",
    batch: int = 1,
    pattern: SparsityPattern | str | None = None,
) -> Eligibility:
    """Say for each layer whether PyTorch's two backends and TensorRT can use its zeros, and which rule decides.

    Eligible is not faster: :func:`checklist` says what hides sparse kernels, or makes them the slower ones.

    Args:
        model: a network, or a result of prune; not changed.
        images: one or more images (N, C, H, W), to count multiplications and rows of inputs; None leaves these out.
        gpu: name ("t4", "a100", "l4", "h100", "b200", "orin") or compute capability ("8.0", "sm_80"); None for the
            one at hand, or an A100 where there is none.
        dtype: number format that the weights will have: "float16", "bfloat16", "float32" or "int8".
        batch: images in a batch, for the padding of inputs; only with ``images``.
        pattern: judge as if every layer were pruned to this N:M, whatever its weights; None looks at the weights.

    Returns:
        The table, which prints with reasons and a summary.

    Raises:
        SnowsError: on an unknown GPU or number format, what is no network, or images that do not fit it.

    >>> net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    >>> found = eligibility(net, gpu="a100", pattern="2:4").table
    >>> found[["layer", "cusparselt", "cutlass", "tensorrt"]].values.tolist()
    [['0', 'yes', 'yes', 'yes'], ['2', 'no', 'no', 'yes']]
    >>> set(eligibility(net, gpu="t4").table["tensorrt_rule"])
    {'architecture'}
    """
    known = rules()
    capability, words = _gpu(gpu, known.gpus)
    name = str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else dtype
    target = Target(capability, one_of("dtype", name, DTYPES), integer("batch", batch, 1, "a number of images"))
    supposed = _supposed(pattern)
    layers = weighted_layers(model, images)
    held = [held_by(supposed, layer.weight.shape[1]) if supposed else held_pattern(layer.weight) for layer in layers]
    rows = [_row(layer, own, known.backends, target) for layer, own in zip(layers, held, strict=True)]
    import pandas as pd

    frame = pd.DataFrame(rows)
    if images is None:
        frame = frame.drop(columns="multiplications")
    if supposed:
        words += f", as if every layer were pruned to {supposed}"
    said = [*_summary(frame, known.backends), *_meanings(held), *_hints(frame, known.backends)]
    cited = {
        (backend.key, rule.id): [known.sources[key] for key in rule.sources]
        for backend in known.backends
        for rule in backend.rules
    }
    return Eligibility(frame, words, target, said, {backend.key: backend.name for backend in known.backends}, cited)


def checklist() -> str:
    """Return what to look at when weights hold 2:4 and nothing is faster, with a source for each line."""
    known = rules()
    cited, said = list[str](), list[str]()
    for number, (sentence, keys) in enumerate(known.checklist, start=1):
        said.append(f"{number}. {sentence} {_numbers([known.sources[key] for key in keys], cited)}")
    return "\n".join(["2:4 and not faster: why", *_wrapped(said), *_listed(cited)])


def _numbers(sources: Sequence[str], cited: list[str]) -> str:
    """Return the numbers of sources in a list, to which new ones are added."""
    cited += [source for source in dict.fromkeys(sources) if source not in cited]
    return f"[{', '.join(str(cited.index(source) + 1) for source in sources)}]"


def _listed(cited: Sequence[str]) -> list[str]:
    return (
        _wrapped(["sources:", *(f"  [{number}] {source}" for number, source in enumerate(cited, start=1))])
        if cited
        else []
    )


def _wrapped(paragraphs: Iterable[str]) -> list[str]:
    options: dict[str, Any] = {"subsequent_indent": "     ", "break_on_hyphens": False, "break_long_words": False}
    return [line for text in paragraphs for line in textwrap.wrap(text, WIDTH, **options)]


def _gpu(gpu: str | float | None, known: Mapping[str, tuple[int, int]]) -> tuple[tuple[int, int], str]:
    """Return a compute capability, and what was asked about in words."""
    if gpu is None:
        if torch.cuda.is_available() and torch.version.hip is None:
            major, minor = torch.cuda.get_device_capability()
            return (major, minor), f"{torch.cuda.get_device_name()} (compute capability {major}.{minor})"
        (major, minor), words = known[ASSUMED], "assumed A100: no CUDA GPU is at hand and none was named"
        return (major, minor), f"{words} (compute capability {major}.{minor})"
    text = str(gpu).strip().lower()
    if match := re.fullmatch(r"(?:(\d{1,2})\.(\d)|sm_?(\d{1,2})(\d))", text):
        major, minor = int(match[1] or match[3]), int(match[2] or match[4])
        return (major, minor), f"compute capability {major}.{minor}"
    name = _MAKERS.sub("", text)
    name = name if name in known else f"rtx{name}"
    if name not in known:
        expected = "a GPU such as a100, t4, l4, h100, b200, orin, or a compute capability such as 8.0"
        raise invalid_argument("gpu", shown(gpu), expected, closest(_MAKERS.sub("", text), known))
    major, minor = known[name]
    return (major, minor), f"{str(gpu).strip().upper()} (compute capability {major}.{minor})"


def _supposed(pattern: SparsityPattern | str | None) -> NM | None:
    if pattern is None:
        return None
    read = parse_pattern(pattern)
    if not isinstance(read, NM):
        raise invalid_argument("pattern", str(read), "N:M, or None for what the weights hold", 'For instance "2:4".')
    return read


def _row(layer: WeightedLayer, held: Held, backends: Iterable[Backend], target: Target) -> dict[str, Any]:
    weight = layer.weight
    row: dict[str, Any] = {
        "layer": layer.name,
        "kind": layer.kind,
        "shape": "x".join(map(str, weight.shape)),
        "weights": weight.numel(),
        "zeros": held.zeros,
        "pattern": held.label,
        "multiplications": layer.multiplications,
    }
    facts = Facts(layer.kind, len(weight), weight.shape[1], held.patterns, held.sentence, layer.positions)
    for backend in backends:
        rule = backend.decide(facts, target)
        notes = "" if rule else "; ".join(n.reason(facts, target) for n in backend.notes if not n.is_met(facts, target))
        row |= {
            backend.key: "no" if rule else "yes",
            f"{backend.key}_rule": rule.id if rule else "",
            f"{backend.key}_reason": _reason(rule, backend, facts, target) if rule else "",
            f"{backend.key}_notes": notes,
        }
    return row


def _reason(rule: Rule, backend: Backend, facts: Facts, target: Target) -> str:
    """Return why a layer is out; of a 1 x 1 convolution that would have to be rewritten, also what comes then."""
    text = rule.reason(facts, target)
    if rule.check == "layer" and facts.kind == ONE_BY_ONE:
        rewritten = replace(facts, kind=LINEAR)
        then = backend.decide(rewritten, target)
        text += f"{_THEN_NO}{then.reason(rewritten, target)}" if then else ": then yes"
    return text


def _summary(frame: pd.DataFrame, backends: Iterable[Backend]) -> list[str]:
    """Return how many layers, weights and multiplications each backend takes."""
    said = []
    for backend in backends:
        taken = frame[frame[backend.key] == "yes"]
        shares = [f"{taken['weights'].sum() / frame['weights'].sum():.1%} of the weights"]
        if "multiplications" in frame and frame["multiplications"].sum() > 0:
            share = taken["multiplications"].sum() / frame["multiplications"].sum()
            shares.append(f"{share:.1%} of the multiplications")
        said.append(f"{backend.name} can take {len(taken)} of {len(frame)} layers: {' and '.join(shares)}.")
    return said


def _meanings(held: Iterable[Held]) -> list[str]:
    """Return what the patterns that are there mean for speed, plainly."""
    found = list(held)
    counts = Counter(own.label for own in found)
    complying = sorted({own.label for own in found if "2:4" in own.patterns and own.label not in ("2:4", "1:2")})
    others = sorted({own.label for own in found if not own.patterns and own.label not in ("dense", "channels")})
    said = []
    if complying:
        said.append(
            f"{', '.join(complying)} complies with 2:4 and runs as 2:4: its further zeros bring no further speed."
        )
    if others:
        said.append(
            f"{', '.join(others)}: such zeros bring no speed on any of these; they make smaller files (`snows sizes`)."
        )
    if counts["channels"]:
        said.append("Zeros of whole channels bring speed everywhere once `snows compact` has taken them out.")
    return said


def _hints(frame: pd.DataFrame, backends: Iterable[Backend]) -> list[str]:
    """Return the notes on layers that are taken, with one of them as an example, and where to read on."""
    said = []
    for backend in backends:
        noted = frame[frame[f"{backend.key}_notes"] != ""]
        if len(noted):
            name, note = noted.iloc[0][["layer", f"{backend.key}_notes"]]
            said.append(f"{backend.name}, {len(noted)} of the layers that it takes: {note} ({name or 'the model'}).")
    return [*said, "Eligible is not faster: `snows eligibility --checklist` says what hides sparse kernels."]
