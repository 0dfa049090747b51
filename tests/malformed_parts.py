"""More malformed input: masks, labels, functions, options without effect, results, and what stands in their folders."""

import json

import numpy as np
import torch
from malformed_cases import INF, NAN, B, Net, compare, evaluate, images, masks, nan_in, net, prune
from safetensors.torch import load_file, save_file
from torch import nn

import snows_core as snows

MASKS = {
    "None in it": (lambda: masks(b=None), "NoneType"),
    "an array": (lambda: masks(b=np.ones(B, bool)), "ndarray"),
    "another shape": (lambda: masks(b=torch.ones(4, 8, 3, 3, dtype=torch.bool)), "(8, 4, 3, 3)"),
    "twos": (lambda: masks(b=torch.full(B, 2)), "the value 2 in 'b'"),
    "halves": (lambda: {"b.weight_mask": torch.full(B, 0.5)}, "the value 0.5"),
    "NaN": (lambda: masks(b=torch.full(B, NAN)), "the value nan"),
    "minus one": (lambda: masks(b=-torch.ones(B)), "the value -1"),
    "255": (lambda: masks(b=torch.full(B, 255, dtype=torch.uint8)), "the value 255"),
    "sparse twos": (lambda: masks(b=torch.full(B, 2.0).to_sparse()), "the value 2"),
    "all zero": (lambda: masks(b=torch.zeros(B, dtype=torch.bool)), "empty"),
    "meta": (lambda: masks(b=torch.ones(B, dtype=torch.bool, device="meta")), "without data"),
    "complex": (lambda: masks(b=torch.full(B, 1j)), "complex"),
    "quantised": (lambda: masks(b=torch.quantize_per_tensor(torch.ones(B), 0.1, 0, torch.quint8)), "quantised"),
    "unknown layer": (lambda: masks(zz=torch.ones(B, dtype=torch.bool)), "'zz'"),
    "a number as a name": (lambda: {3: torch.ones(B, dtype=torch.bool)}, "as texts"),
    "two for one weight": (lambda: {"b": masks()["b"], "b.weight": ~masks()["b"]}, "different masks for 'b'"),
    "none": (dict, "no zeros"),
    "all ones": (lambda: {"b": torch.ones(B, dtype=torch.bool)}, "no zeros"),
    "a list": (lambda: [torch.ones(B)], "list"),
    "a number": (lambda: 3, "int"),
    "a class": (lambda: Net, "class Net"),
    "no file": (lambda: "nothing.safetensors", "no file"),
    "null in the name": (lambda: "a\0b", "no file"),
    "a long name": (lambda: "a" * 5000, "no file"),
    "another network": (lambda: nn.Linear(3, 3), ""),
    "a network with NaN": (lambda: nan_in("b.weight"), "NaN"),
}
PARTS = {f"masks: {name}": ("masks", word, lambda f=f: prune(masks=f())) for name, (f, word) in MASKS.items()}
PARTS |= {f"import_masks: {name}": ("masks", word, lambda f=f: snows.import_masks(f(), net()))
          for name, (f, word) in MASKS.items() if name != "a class"}  # fmt: skip
PARTS |= {f"apply_masks: {name}": ("masks", "", lambda f=f: snows.apply_masks(net(), f()))
          for name, (f, _) in MASKS.items() if name not in ("all zero", "all ones", "another network",
                                                            "a network with NaN")}  # fmt: skip
PARTS |= {f"weight_names={value!r}": ("weight_names", "", lambda v=value: snows.apply_masks(net(), masks(), v))
          for value in (3, ["b"], {"b": None}, {"b": "zz.weight"})}  # fmt: skip

LABELS = {
    "floats": torch.zeros(40),
    "NaN": torch.full((40,), NAN),
    "bool": torch.zeros(40, dtype=torch.bool),
    "negative": -torch.ones(40).long(),
    "too few": torch.zeros(39).long(),
    "too many": [0] * 41,
    "texts": ["cat"] * 40,
    "nothing": [None] * 40,
    "one-hot": torch.eye(3)[torch.zeros(40).long()],
    "no such class": [3] * 40,
    "beyond all classes": [2**70] * 40,
    "none": [],
    "one": 3,
    "meta": torch.zeros(40, device="meta").long(),
    "sparse": torch.zeros(40).long().to_sparse(),
    "a dictionary": {},
    "bytes": b"0" * 40,
}
PARTS |= {f"labels: {name}": ("labels", "", lambda v=value: prune(pattern=0.5, mask="woodfisher", labels=v))
          for name, value in LABELS.items()}  # fmt: skip
PARTS |= {f"evaluate, labels: {name}": ("labels", "", lambda v=value: evaluate(labels=v))
          for name, value in LABELS.items()}  # fmt: skip
PARTS |= {f"test, labels: {name}": ("test", "", lambda v=value: compare(test=(images(), v)))
          for name, value in LABELS.items() if name in ("NaN", "too few", "no such class", "meta")}  # fmt: skip

FUNCTIONS = {  # of (name, weight), or of (images, generator)
    "no argument": (lambda: 1, "a function of ()"),
    "one argument": (lambda a: a, "a function of (a)"),
    "three arguments": (lambda a, b, c: b, "a function of (a, b, c)"),
    "fails": (lambda a, b: 1 / 0, "ZeroDivisionError"),
    "fails with many lines": (lambda a, b: (_ for _ in ()).throw(RuntimeError("one\ntwo")), "one two"),
}
OF_WEIGHTS = {
    "None": (lambda name, weight: None, "NoneType"),
    "an array": (lambda name, weight: weight.numpy(), "ndarray"),
    "another shape": (lambda name, weight: weight[:1], "shape (1, 4, 3, 3) for 'b'"),
    "NaN": (lambda name, weight: weight * NAN, "NaN"),
    "infinite": (lambda name, weight: weight / 0, "infinite"),
    "complex": (lambda name, weight: weight.to(torch.complex64), "complex"),
    "sparse": (lambda name, weight: weight.to_sparse(), "sparse"),
    "meta": (lambda name, weight: weight.to("meta"), "meta"),
}
OF_IMAGES = {
    "None": (lambda x, generator: None, "NoneType"),
    "a pair": (lambda x, generator: (x, generator), "tuple"),
    "another size": (lambda x, generator: x[..., :4], "(2, 3, 8, 4)"),
    "fewer": (lambda x, generator: x[:1], "(1, 3, 8, 8)"),
    "integers": (lambda x, generator: x.long(), "torch.int64"),
    "another precision": (lambda x, generator: x.double(), "torch.float64"),
    "another device": (lambda x, generator: x.to("meta"), "meta"),
    "NaN": (lambda x, generator: x * NAN, "NaN"),
    "sparse": (lambda x, generator: x.to_sparse(), "sparse"),
}
for function, (call, said) in (FUNCTIONS | OF_WEIGHTS).items():
    PARTS[f"saliency: {function}"] = ("saliency", said, lambda f=call: prune(saliency=f))
    PARTS[f"saliency of permutations: {function}"] = (
        "saliency", said, lambda f=call: snows.permute_channels(net(), images(2), "2:4", saliency=f))  # fmt: skip
for function, (call, said) in (FUNCTIONS | OF_IMAGES).items():
    PARTS[f"augment: {function}"] = ("augment", said, lambda f=call: prune(augment=f, refine=2))

WITHOUT_EFFECT = {
    "augment": {"augment": snows.flip_and_shift},
    "moving_masks": {"moving_masks": True},
    "refine_solver": {"refine_solver": "natural", "refine": 0},
    "stage_k": {"stage_k": 3},
    "flops": {"flops": 0.5},
    "labels": {"labels": [0] * 40},
    "saliency": {"saliency": "obs", "mask": "wanda"},
    "permute": {"permute": True, "masks": masks()},
    "stages": {"stages": 2, "masks": masks()},
    "option": {"cg_iters": 3},
}
PARTS |= {f"without effect: {name}": (name, "", lambda o=o: prune(**o)) for name, o in WITHOUT_EFFECT.items()}


def resumed(**fields):
    result = prune()
    vars(result).update(fields)
    return prune(resume=result)


BROKEN = {
    "report": {"report": None},
    "manifest": {"manifest": []},
    "masks": {"masks": {"b": 3}},
    "state": {"state": {}},
    "NaN": {"state": {"b.weight": torch.full(B, NAN), "c.weight": torch.full((8, 8, 3, 3), NAN)}},
    "shape": {"state": {"b.weight": torch.ones(2), "c.weight": torch.ones(3)}},
    "no masks": {"masks": {}},
}
PARTS |= {f"resume: {name}": ("resume", "", lambda f=fields: resumed(**f)) for name, fields in BROKEN.items()}
PARTS |= {f"resume={v!r:.20}": ("resume", "", lambda v=v: prune(resume=v)) for v in ("folder", 3, {}, nn.Linear(2, 2))}
PARTS |= {f"count={v!r}": ("count", "", lambda v=v: snows.estimate(net(), images(2), count=v)) for v in (0, NAN, "3")}
PARTS |= {f"batch_size={v!r}": ("batch_size", "", lambda v=v: evaluate(batch_size=v)) for v in (0, NAN, None, 2.5)}
PARTS |= {f"features={v!r}": ("features", "", lambda v=v: evaluate(features=v)) for v in (0, "yes", [])}
for option, values in {
    "masks": (None, "", [], "zz", [None], 3),
    "updates": (None, "", "zz", ["none", "none"], 3),
    "patterns": ([], ["2:4", "2:4"]),
    "fixed_masks": (1, None),
    "refine": (3,),
    "out": (3, "a\0b", ""),
}.items():
    PARTS |= {f"compare, {option}={v!r}": (option, "", lambda o=option, v=v: compare(**{o: v})) for v in values}


def shifted(x, generator, shift):
    return snows.flip_and_shift(x, generator, shift)


PARTS["shift below zero"] = ("shift", "", lambda: shifted(images(2), torch.Generator(), -1))
PARTS["no generator"] = ("generator", "", lambda: shifted(images(2), None, 1))
PARTS["one image to shift"] = ("images", "", lambda: shifted(images(2)[0], torch.Generator(), 1))
PARTS["NM"] = ("pattern", "", lambda: snows.NM(2.0, 4))
PARTS["Unstructured"] = ("pattern", "", lambda: snows.Unstructured(10**400))
PARTS["cap"] = ("cap", "", lambda: snows.Unstructured(0.5, "global", INF))
PARTS["scope"] = ("scope", "", lambda: snows.Unstructured(0.5, ["global"]))
PARTS["groups"] = ("groups", "", lambda: snows.Structured(0.5, 3))

# What stands in a saved folder: file, and what becomes of its content.


def record(change):
    return "manifest.json", lambda path: path.write_text(json.dumps(change(json.loads(path.read_text()))))


def tensors(name, change):
    return f"{name}.safetensors", lambda path: save_file(change(load_file(path)), path)


def table(old, new):
    return "report.csv", lambda path: path.write_bytes(path.read_bytes().replace(old, new))


def content(name, data):
    return name, lambda path: path.write_bytes(data)


def with_nan(state):
    state["c.weight"].view(-1)[0] = NAN
    return state


FOLDERS = {
    "a list": record(lambda m: [m]),
    "nested": content("manifest.json", b"[" * 200_000 + b"]" * 200_000),
    "nested dictionaries": content("manifest.json", b'{"a":' * 200_000 + b"1" + b"}" * 200_000),
    "no names": record(lambda m: {"pattern": "2:4"}),
    "no pattern": record(lambda m: {"weight_names": m["weight_names"]}),
    "names of other weights": record(lambda m: m | {"weight_names": {"b": "c.weight", "c": "b.weight"}}),
    "records": record(lambda m: m | {"stage_records": [3]}),
    "calibration": record(lambda m: m | {"calibration": 3}),
    "no JSON": content("manifest.json", b"\xff\xfe"),
    "no status": table(b"status", b"stutas"),
    "no kept": table(b"kept", b"kopt"),
    "no loss": table(b"loss_end", b"lost_end"),
    "another status": table(b"pruned", b"prooned"),
    "texts": table(b"0.5", b"half"),
    "other counts": table(b",288,144,", b",288,99,"),
    "Latin-1": table(b"convolution", b"\xe9"),
    "empty report": content("report.csv", b""),
    "no masks": tensors("masks", lambda m: {}),
    "masks of twos": tensors("masks", lambda m: {name: 2 * mask.int() for name, mask in m.items()}),
    "masks of other shapes": tensors("masks", lambda m: {name: mask[:1].clone() for name, mask in m.items()}),
    "other masks": tensors("masks", lambda m: {name: ~mask for name, mask in m.items()}),
    "NaN": tensors("model", with_nan),
    "whole numbers": tensors("model", lambda m: {name: value.int() for name, value in m.items()}),
    "weights cut": ("model.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-20])),
    "header": content("model.safetensors", b"\xff" * 64),
    "a folder in place of a file": ("report.csv", lambda path: (path.unlink(), path.mkdir())),
}
PLACES = {
    "None": lambda place: None,
    "empty": lambda place: "",
    "null": lambda place: "a\0b",
    "a file": lambda place: place / "file",
    "in a file": lambda place: place / "file" / "deeper",
    "long": lambda place: place / ("a" * 300),
    "deep": lambda place: "a/" * 5000,
    "surrogates": lambda place: "\ud800",
    "a number": lambda place: 3,
    "a list": lambda place: ["a"],
    "bytes": lambda place: b"abc",
    "a network": lambda place: nn.Linear(2, 2),
}
