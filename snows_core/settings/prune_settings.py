"""Every option of a run, written once: its name, type, default, meaning and check.

``prune``, ``estimate`` and ``make_masks`` show them in their signatures and docstrings, the command line makes its
options of them, and manifests record them. Nothing here needs PyTorch, so that a command line's help does not wait.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snows_core.settings.checks import read_fields
from snows_core.settings.recipe import Recipe, get_recipe
from snows_core.settings.types import (
    Augment,
    JointSolver,
    LayerChoice,
    Saliency,
    Sparsities,
    SparsityPattern,
    Stages,
)
from snows_core.settings.values import DEFAULT_K, K, recorded, recorded_stage

if TYPE_CHECKING:  # types of arguments, which only PyTorch can check
    import torch
    from torch import Tensor, nn


def _meaning(everywhere: str, python: str = "") -> dict[str, str]:
    """Say what a setting means, and what else is true of it in Python."""
    return {"help": everywhere, "python": python}


@dataclass(frozen=True)
class PruneSettings:
    """What a run does, checked as far as can be done without a network; each field is a keyword of ``prune``.

    Numbers may come as scalars of NumPy or PyTorch and are kept as Python's own; a recipe's name becomes the recipe.
    ``prune(model, images, **vars(settings))`` runs with them, and so do ``estimate`` and ``make_masks``.

    Raises:
        SnowsError: on a value that cannot be meant, naming the field.

    >>> PruneSettings(k=None, recipe="paper").k
    5
    """

    pattern: SparsityPattern | Sparsities | str | float = field(
        default="2:4",
        metadata=_meaning(
            "N:M as 2:4, a share of zeros in each layer as 0.8, or with one threshold for all layers as global:0.8;"
            " global:0.8:0.95 leaves at least 5 % in every layer; layer1.*=0.5,layer2.conv1=0.9 says it by layer;"
            " structured:0.5 takes half of all channels, hidden neurons and attention heads whole.",
            'Also ``NM(2, 4)``, ``Unstructured(0.8, "global", cap=0.95)``, ``Structured(0.5)`` and a mapping, '
            '``{"layer1.*": 0.5}``.',
        ),
    )
    allocation: str | None = field(
        default=None,
        metadata=_meaning(
            "How the zeros of an overall sparsity are shared out among layers: uniform, erk, lamp, or measured, which"
            " tries several on the calibration images.",
            "Default: as the pattern's scope says (:mod:`snows_core.masks.allocation`).",
        ),
    )
    flops: float | None = field(
        default=None,
        metadata=_meaning(
            "Share of the pruned layers' multiplications that stays at most, as 0.3, with the mask falcon and a global"
            " pattern; by default the pattern alone bounds them.",
            "A weight takes part in as many as its layer has output positions (:mod:`snows_core.methods.falcon`).",
        ),
    )
    k: K = field(
        default=DEFAULT_K,
        metadata=_meaning(
            "Operations behind a layer that its loss sees; 0 is layer-wise least squares; auto chooses per layer.",
            '"auto" goes by gain per cost (:mod:`snows_core.methods.choose_k`); None is the default.',
        ),
    )
    recipe: str | Recipe = field(
        default="fast",
        metadata=_meaning(
            "fast, or paper for the published procedure.",
            "Also a :class:`~snows_core.settings.Recipe`.",
        ),
    )
    masks: Mapping[str, Tensor] | nn.Module | str | Path | None = field(
        default=None,
        metadata=_meaning(
            "Masks made elsewhere, used as they are instead of a pattern: a file of masks, or of weights with zeros.",
            "Also bool tensors by layer or parameter name, or a pruned model or state dict whose zeros define them.",
        ),
    )
    saliency: str | Saliency = field(
        default="magnitude",
        metadata=_meaning(
            "How weights are scored; the lowest scores are pruned: magnitude, or from the images curvature, obs or"
            " fisher, or one of the first two and fisher as obs+fisher.",
            "Also a function of (name, weight). Formulas: :mod:`snows_core.methods.scoring`,"
            " :mod:`snows_core.loss.fisher`.",
        ),
    )
    effort: str = field(
        default="standard",
        metadata=_meaning(
            "quick, standard or best: how far masks are searched and weights refined; single options override it.",
            'It concerns SNOWS itself: other methods and the recipe "paper" take one sweep (:func:`.get_effort`).',
        ),
    )
    stages: Stages | None = field(
        default=None,
        metadata=_meaning(
            "Stages that lead to the pattern: a number, or all of them as 3:4,2:4,1:4. Between two, the kept weights"
            " are re-fitted, and the re-fitted weights choose the next mask.",
            "A number divides the way geometrically (:mod:`snows_core.masks.schedule`); a list ends with the pattern."
            " None leaves it to ``effort``, as for the next two.",
        ),
    )
    sweep_images: int | None = field(
        default=None,
        metadata=_meaning(
            "Use at most this many of the calibration images in the sweeps; joint refinement takes all of them.",
            "None leaves it to ``effort``.",
        ),
    )
    stage_k: int | None = field(
        default=None,
        metadata=_meaning("K of the re-fit between two stages; 0 is least squares and cheap."),
    )
    mask: str | None = field(
        default=None,
        metadata=_meaning(
            "What chooses masks: magnitude; swaps, which improves them; wanda, obs, obc, sparsegpt, alps, nettrim; of"
            " the whole network obd, woodfisher, mfac, cbs, chita, falcon, cap, dimap.",
            "None leaves it to ``effort``: swaps for N:M masks of magnitude (:mod:`snows_core.solvers.swaps`).",
        ),
    )
    update: str = field(default="snows", metadata=_meaning("Method that re-fits the kept weights of a layer."))
    labels: Sequence[int] | Tensor | None = field(
        default=None,
        metadata=_meaning(
            "Classes of the calibration images, for methods that take gradients of the loss.",
            "One whole number an image, in the order of ``images``. Default: drawn from the dense network's softmax.",
        ),
    )
    permute: bool | None = field(
        default=None,
        metadata=_meaning(
            "Before N:M masks are made, put the channels between layers in an order under which they keep more; the"
            " function stays the same, weights and masks of the result are in the new order.",
            "None leaves it to ``effort``, which permutes for masks of magnitude alone"
            " (:mod:`snows_core.sweep.permute`).",
        ),
    )
    layers: LayerChoice = field(
        default=None,
        metadata=_meaning(
            "Layers to prune, by names or globs.",
            "Also classes, modules, or a predicate of (name, module); default all convolution and linear layers but the"
            " first and the classifier.",
        ),
    )
    exclude: LayerChoice = field(
        default=None, metadata=_meaning("Layers to leave dense, by names or globs.", "Chosen as ``layers`` are.")
    )
    leaf_modules: Iterable[type[nn.Module] | str] = field(
        default=(),
        metadata=_meaning(
            "Modules that torch.fx must not look into, by names or globs; they stay dense.", "Also classes."
        ),
    )
    device: torch.device | str | None = field(
        default=None,
        metadata=_meaning(
            "Where to compute: cpu, cuda, cuda:1, ...",
            "Default: where the model is. The result's model is where the model was.",
        ),
    )
    max_images: int | None = field(
        default=None,
        metadata=_meaning("Use at most this many calibration images.", "The first ones; default all of them."),
    )
    max_memory: float | None = field(
        default=None,
        metadata=_meaning(
            "Memory for graphs and resting values: bytes as 2e9, or a fraction of what is free as 0.5.",
            "Default 0.8 of a GPU, 2.5 GB of a host. Graphs are rebuilt, values rest in host memory or on disk as"
            " needed, with the same result.",
        ),
    )
    refine: int | None = field(
        default=None,
        metadata=_meaning(
            "Steps of joint refinement after the sweep; pays most at high sparsity; 0 for none.",
            "It also changes biases, and scales and shifts of normalisation layers (:mod:`snows_core.sweep.refine`)."
            " None leaves it to ``effort``.",
        ),
    )
    refine_solver: JointSolver = field(
        default="adam",
        metadata=_meaning(
            "Solver of joint refinement: adam, natural (gradients preconditioned by row factors), or newton.",
            "Behind stages adam goes as far as natural, in less time; from one mask natural goes farther. A step of"
            " newton costs as much as some ten of the others (notebook 06, figures/steps).",
        ),
    )
    moving_masks: bool = field(
        default=False,
        metadata=_meaning(
            "Let the masks change during refinement, within the same pattern.",
            "For masks made by ``pattern``; see :mod:`snows_core.sweep.moving_masks`.",
        ),
    )
    augment: Augment | None = field(
        default=None,
        metadata=_meaning(
            "Change calibration images at random during refinement.",
            "A function of (images, generator), for instance ``snows.flip_and_shift``.",
        ),
    )
    seed: int = field(
        default=0,
        metadata=_meaning(
            "Seed of everything random: the order of the images, equal scores, curvature probes, refinement."
        ),
    )
    deterministic: bool = field(
        default=False,
        metadata=_meaning(
            "Refuse kernels that do not give the same numbers each time; it matters on GPUs.",
            "The caller's own switches of PyTorch are as before afterwards.",
        ),
    )
    progress: bool = field(default=True, metadata=_meaning("Show a progress bar."))

    def __post_init__(self) -> None:
        """Refuse what cannot be meant, and keep the rest in one form."""
        for name, value in read_fields(vars(self)).items():
            object.__setattr__(self, name, value)  # the class is frozen for everybody else

    def record(self) -> dict[str, Any]:
        """Return every setting as a manifest holds it: functions, classes and modules by name, and no tensors.

        >>> PruneSettings("1:4", layers=["conv*"]).record()["layers"]
        ['conv*']
        """
        given = self.masks is not None
        special = {
            "pattern": "given masks" if given else str(self.pattern),
            "masks": "given" if given else None,
            "labels": None if self.labels is None else "given",
            "recipe": asdict(get_recipe(self.recipe)),
            "stages": [recorded_stage(stage) for stage in self.stages]
            if isinstance(self.stages, tuple)
            else self.stages,
        }
        return {f.name: special[f.name] if f.name in special else recorded(getattr(self, f.name)) for f in fields(self)}
