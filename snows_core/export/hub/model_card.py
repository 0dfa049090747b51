"""The model card of a pruned network, written from the record of its run: nothing in it is made up.

What the record does not hold is called unknown, or not measured. Paths of the machine that it was made on are not
repeated: a card is made to be published.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snows_core.errors import require_extra
from snows_core.export.hub.again import made_by
from snows_core.export.hub.measured import measured_lines, of_features
from snows_core.export.hub.reloading import CONFIG, PROGRAM, loading_lines, weights_lines
from snows_core.export.weights import ExportedWeights, underflow_words
from snows_core.result import PruneResult
from snows_core.tables import table

UNKNOWN = "unknown"
PAPER = "https://openreview.net/forum?id=eNQp79A5Oz"
HUB_DATASETS = {
    "cifar10": "uoft-cs/cifar10",
    "cifar10-full": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "imagenette": "frgfm/imagenette",
    "imagenet": "ILSVRC/imagenet-1k",
}
"""Name of a data set to where the hub has it."""
NO_SPEED = (
    "The weights are dense tensors with zeros in place: as they are, they take as much memory and time as before."
)
SPEED = {
    "2:4": "2:4 zeros can bring speed where software packs them for sparse tensor cores: NVIDIA GPUs from compute"
    " capability 8.0 on, in half precision or INT8, on layers that are wide enough. On a CPU, or on a T4, they bring"
    " none.",
    "structured": "Whole channels, neurons and heads are zero: `snows compact` takes them out, and what is left is a"
    " smaller network, which needs no special hardware.",
    "other": "No common GPU or CPU library runs this pattern faster; it makes compressed files smaller.",
}


@dataclass(frozen=True)
class About:
    """What a card says of a pruned network beyond what its run has recorded.

    Attributes:
        license: of the weights, as the hub names licences ("apache-2.0", "mit"); None where it is not known.
        base_model: name of the dense network on the hub, as "timm/resnet50.a1_in1k"; None where it is not known.
        build: of a network that timm cannot make from a description: a module to import, and the expression that makes
            the untrained network, as ``("my_networks", "my_networks.Net(10)")``.
        mean: of the images, one value a channel; None where it is not known.
        std: likewise.
    """

    license: str | None = None
    base_model: str | None = None
    build: tuple[str, str] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def model_card(
    result: PruneResult, config: Mapping[str, Any], weights: ExportedWeights, about: About, folder: str
) -> str:
    """Return the README of a hub's folder: front matter in YAML, then Markdown.

    Args:
        result: of a run, or loaded.
        config: content of config.json, which says how the network is made.
        weights: what was written.
        about: what the run has not recorded.
        folder: name of the folder, for the lines that load it.

    Returns:
        The text.
    """
    manifest = result.manifest
    name = _network_name(manifest, config)
    parts = [
        f"---\n{_front_matter(manifest, config, about)}\n---",
        f"# {name}, pruned to {manifest.get('pattern', UNKNOWN)}",
        f"Pruned once, without retraining, by [SNOWS]({PAPER}) (`snows-core`): "
        f"{weights.zeros:,} of the {weights.weights:,} weights of {len(result.masks)} layers are zero"
        f" ({weights.zeros / max(1, weights.weights):.1%}).",
        *_loading(config, folder),
        *_what(result, weights),
        *_how(manifest),
        "## Data",
        _calibration_words(manifest),
        "## Numbers",
        *measured_lines(manifest, weights.dtype),
        "## Limits",
        _bullets(_limits(manifest)),
        "## Licence",
        _licence_words(about),
    ]
    return "\n\n".join(parts) + "\n"


def _network_name(manifest: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    source = manifest.get("source") or {}
    own = config.get("architecture") or str(config.get("class", UNKNOWN)).rpartition(".")[2]
    return str(source.get("model") or own)


def _front_matter(manifest: Mapping[str, Any], config: Mapping[str, Any], about: About) -> str:
    """Return the YAML of a card."""
    require_extra("export", "huggingface_hub", "yaml")
    from huggingface_hub import ModelCardData

    feature = of_features(manifest) or config.get("num_classes") == 0
    dataset = HUB_DATASETS.get(str(_data_name(manifest)))
    pruned = (manifest.get("evaluation") or {}).get("pruned") or {}
    measured = [name for name in ("accuracy", "agreement", "kl", "cosine", "cka") if pruned.get(name) is not None]
    data = ModelCardData(
        license=about.license or UNKNOWN,
        library_name="timm" if "architecture" in config else "pytorch",
        pipeline_tag="image-feature-extraction" if feature else "image-classification",
        tags=["pruning", "sparsity", "snows"],
        base_model=about.base_model,
        datasets=[dataset] if dataset else None,
        metrics=measured or None,
    )
    return str(data.to_yaml()).strip()


def _loading(config: Mapping[str, Any], folder: str) -> list[str]:
    lines = loading_lines(config, folder)
    if "architecture" in config:
        needs = "timm 1.0.16 or later (it brings PyTorch and safetensors)"
    elif config.get("program"):
        needs = "PyTorch alone"
    else:
        needs = f"PyTorch, safetensors and {config.get('import', 'the class of the network')}"
    words = f"Needs {needs}, and not the package that pruned it. `{folder}` is the folder of this file."
    if "build" in config and config["import"].split(".")[0] == "snows_core" and not config.get("program"):
        words = f"Needs {needs}, which has the class of the network. `{folder}` is the folder of this file."
    parts = ["## Load it", words, _code(lines, "python")]
    if config.get("program"):
        parts += [
            f"`{PROGRAM}` is the whole network. Where its class is at hand, `model.safetensors` fits it:",
            _code(weights_lines(config, folder), "python"),
        ]
    sizes = config.get("input_size") or (config.get("pretrained_cfg") or {}).get("input_size")
    mean, std = ((config.get("pretrained_cfg") or config).get(name) for name in ("mean", "std"))
    if sizes:
        scaled = f", normalised by mean {_numbers(mean)} and std {_numbers(std)}" if mean and std else ""
        parts.append(f"Images: {' x '.join(map(str, sizes))} (channels, height, width){scaled}; see `{CONFIG}`.")
    return parts


def _numbers(values: Sequence[float]) -> str:
    return f"({', '.join(f'{value:g}' for value in values)})"


def _what(result: PruneResult, weights: ExportedWeights) -> list[str]:
    """Return pattern, layers, and those that were left dense, with their reasons."""
    report = result.report
    pruned, rest = report[report["status"] == "pruned"], report[report["status"] != "pruned"]
    shown = pruned[["layer", "shape", "weights", "kept", "sparsity"]]
    listed = int(report["weights"].sum())
    lines = [
        f"Pattern: `{result.manifest.get('pattern', UNKNOWN)}`.",
        f"Pruned layers: {len(pruned)}, with {weights.weights:,} of the {listed:,} weights of all layers"
        f" ({weights.zeros / max(1, listed):.1%} of these are zero).",
    ]
    if weights.dtype:
        lines.append(f"Written in {weights.dtype}.")
    if weights.underflows:
        lines.append(f"{underflow_words(weights.underflows, weights.dtype)}.".capitalize())
    lines += [
        f"Left dense, {reason or 'without a reason on record'}: {', '.join(f'`{name}`' for name in group['layer'])}."
        for reason, group in rest.groupby("reason", sort=False, dropna=False)
    ]
    details = f"<details><summary>Layer by layer</summary>\n\n{_code(table(shown).splitlines(), 'text')}\n\n</details>"
    return ["## What", _bullets(lines), details]


def _how(manifest: Mapping[str, Any]) -> list[str]:
    recipe = manifest.get("recipe")
    recipe = recipe.get("name") if isinstance(recipe, Mapping) else recipe
    stages = manifest.get("stage_records") or ()
    way = [f"`{record.get('pattern')}`" for record in stages if isinstance(record, Mapping)]
    refined = manifest.get("refinement") or {}
    versions = manifest.get("versions") or {}
    made = ", ".join(f"{name} {version}" for name, version in versions.items() if version != "not installed")
    command, open_ = made_by(manifest)
    lines = [
        _method_words(manifest, recipe or UNKNOWN),
        f"Stages: {', then '.join(way)}." if len(way) > 1 else "",
        f"Joint refinement of all kept weights: {refined['steps']} steps." if refined.get("steps") else "",
        "Channels between layers were put in an order in which the pattern keeps more; the function is the same."
        if manifest.get("permutations")
        else "",
        f"Made with {made or 'unknown versions'}, on {manifest.get('device', UNKNOWN)}"
        f"{', commit ' + str(manifest['commit']) if manifest.get('commit') else ''}.",
    ]
    shell = command.startswith("snows ")
    shown = shlex_wrapped(command) if shell else command
    parts = ["## How", _bullets(filter(None, lines)), "To make it again:"]
    return [*parts, _code([shown], "sh" if shell else "python"), *([" ".join(open_)] if open_ else [])]


def _method_words(manifest: Mapping[str, Any], recipe: str) -> str:
    """Say what chose the masks, and what became of the weights that stay."""
    mask, update = (manifest.get(name) or UNKNOWN for name in ("mask", "update"))
    masks = "Masks were given" if manifest.get("pattern") == "given masks" else f"Masks by `{mask}`"
    if update == "none":
        return f"{masks}; the weights that stay are those of the dense network."
    if update != "snows":
        return f"{masks}; the weights that stay were fitted by `{update}`, with K = {manifest.get('k', UNKNOWN)}."
    words = (
        f"{masks}; the weights that stay were fitted, layer by layer, so that the outputs of the layer and of the next"
    )
    return f"{words} K = {manifest.get('k', UNKNOWN)} operations stay those of the dense network (recipe `{recipe}`)."


def shlex_wrapped(command: str, width: int = 100) -> str:
    r"""Return a shell ``command`` on lines of at most ``width`` characters, which a shell reads as one."""
    lines, current = list[str](), ""
    for word in shlex.split(command):
        quoted = shlex.quote(word)
        if current and len(current) + len(quoted) > width and word.startswith("--"):
            lines.append(f"{current} \\")
            current = f"    {quoted}"
        else:
            current = f"{current} {quoted}" if current else quoted
    return "\n".join([*lines, current])


def _data_name(manifest: Mapping[str, Any]) -> str | None:
    source = manifest.get("source") or {}
    name = (source.get("calibration") or {}).get("data") or source.get("data")
    return None if name is None else str(name)


def _calibration_words(manifest: Mapping[str, Any]) -> str:
    """Say which images the network was pruned on."""
    made, source = manifest.get("calibration") or {}, manifest.get("source") or {}
    sample = source.get("calibration") or {}
    images = made.get("images", UNKNOWN)
    name = _data_name(manifest)
    if name is None:
        where = "that were passed in Python; the record does not say of which data set"
    elif name.startswith("folder:"):
        where = "of a folder of the user's own"
    else:
        where = f"of `{name}`" + (f" ({HUB_DATASETS[name]} on the hub)" if name in HUB_DATASETS else "")
    split = f", drawn from its {sample['split']} split by the seed {sample['seed']}" if "seed" in sample else ""
    seed = "" if split else f", seed {manifest.get('seed', UNKNOWN)}"
    digest = f" (digest {made['digest']})" if made.get("digest") else ""
    labels = "with their labels" if str(manifest.get("labels")).startswith("given") else "without labels"
    return f"Calibration: {images} images {where}{split}{seed}{digest}, {labels}."


def _limits(manifest: Mapping[str, Any]) -> list[str]:
    pattern = str(manifest.get("pattern", ""))
    kind = "structured" if pattern.startswith("structured") else "2:4" if pattern == "2:4" else "other"
    images = (manifest.get("calibration") or {}).get("images", UNKNOWN)
    lines = [
        f"{NO_SPEED} {SPEED[kind]}",
        f"It was made with {images} calibration images: on images unlike them it may have lost more than the numbers"
        " above say.",
        "It was not retrained. Whatever the dense network gets wrong, and whatever bias it has, is still there.",
    ]
    if _data_name(manifest) == "imagenet-samples":
        lines.append("The sample images look like training images of the dense network: judge by agreement and KL.")
    return lines


def _licence_words(about: About) -> str:
    if about.license is None:
        base = f" `{about.base_model}`" if about.base_model else ""
        return f"Unknown: see the base model{base}. Pruned weights are under the licence of the dense ones."
    return f"`{about.license}`, that of the dense weights{f' ({about.base_model})' if about.base_model else ''}."


def _bullets(lines: Any) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _code(lines: Sequence[str], language: str) -> str:
    return "\n".join([f"```{language}", *lines, "```"])


def folder_name(folder: Path) -> str:
    """Return how a card calls the ``folder`` it lies in: by its name, so that nothing is told of the machine."""
    return folder.resolve().name
