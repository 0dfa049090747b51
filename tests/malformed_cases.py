"""Malformed input of the Python interface, one a line: which argument is at fault, a word of the message, the call."""

import itertools

import numpy as np
import torch
from torch import nn
from toys import random_images

import snows_core as snows
from snows_core.errors import shown

NAN, INF, HUGE = float("nan"), float("inf"), 2**70
B = (8, 4, 3, 3)  # shape of the weight of layer "b"


class Net(nn.Module):
    """Three convolutions and a classifier: "b" and "c" are pruned."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 3)

    def forward(self, x):
        return self.fc(self.c(self.b(self.a(x).relu()).relu()).relu().mean((2, 3)))


class Wrapped(Net):
    """The same, with a forward of its own."""

    def __init__(self, form):
        super().__init__()
        self.form = form

    def forward(self, x):
        return self.form(super().forward(x))


class TwoInputs(Net):
    """The same, with a second input."""

    def forward(self, image, age):
        return super().forward(image) + age


def net(change=None):
    """Return the network in eval mode, after a change of its weights or modules."""
    model = Net().eval()
    with torch.no_grad():
        if change is not None:
            change(model)
    return model


def images(count=40, channels=3, size=8):
    return random_images(count, size, channels=channels, dtype=torch.float32)


def prune(model=None, x=None, pattern="2:4", **options):
    options = {"effort": "quick", "k": 0, "progress": False, **options}
    return snows.prune(net() if model is None else model, images() if x is None else x, pattern, **options)


def bad_model(model):
    return snows.prune(model, images(), progress=False, effort="quick")


def bad_images(x):
    return snows.prune(net(), x, progress=False, effort="quick")


def evaluate(x=None, labels=None, **options):
    return snows.evaluate(net(), images() if x is None else x, labels, **options)


def compare(**options):
    options = {"test": images(8), "masks": "magnitude", "updates": "none", "k": 0, "progress": False, **options}
    return snows.compare(net(), images(), **options)


def masks(**other):
    mask = torch.arange(8 * 8 * 9).view(8, 8, 3, 3) % 2 == 0
    return {"b": mask[:, :4].clone(), "c": mask, **other}


def raising(error):
    yield images(4)
    raise error


def nan_in(name, value=NAN):
    return net(lambda model: model.get_parameter(name).view(-1)[0].fill_(value))


NUMBERS = {
    "k": (NAN, INF, "3", True, -1, 2.5, HUGE, [1], object(), 10**5000, torch.ones(2), torch.empty((), device="meta")),
    "seed": (NAN, "0", None, True, -1, HUGE, np.float32(1.0)),
    "steps": (NAN, "nan", None, True, -1, 2.0, HUGE),
    "batch_size": (0, NAN, "64", None, False),
    "max_images": (0, -1, NAN, INF, "10", True, HUGE, 1e3),
    "refine": (-1, NAN, "3", True, HUGE),
    "stages": (0, -1, NAN, True, 2.5, 10**6, HUGE, b"2", (), {}, {"b": 0.5}, ["3:4", None], ["2:4", object()], "3:4,"),
    "sweep_images": (0, NAN, "8", True),
    "stage_k": (-1, NAN, "0", True),
    "max_memory": (-1.0, NAN, INF, "2e9", True, 0, 1000),
    "ridge": (NAN, INF, "1e-3", None, -1.0, True, 10**400),
    "damping": (NAN, -INF, "0", 1j),
    "shrink": (0, 1, NAN, "0.9"),
    "curvature_images": (0, NAN, "256", True),
    "progress": (0, 1, "yes", None),
    "moving_masks": (1, "no", None),
    "permute": (1, "yes", NAN),
    "effort": ("", "slow", None, 3, b"quick"),
    "recipe": ("", "slow", None, 3, {}),
    "mask": ("", " ", "wandaa", 3, b"wanda", ["wanda"], np.ones(3)),
    "update": ("", "adam", None, 3),
    "saliency": ("", "magnitud", None, 3, torch.ones(3), object()),
    "allocation": ("", "flat", 3, np.ones(3)),
    "refine_solver": ("sgd", None, 3, np.ones(3)),
    "curvature": ("exact", None, 3),
    "layers": (3, True, b"b", [None], ["b", None], [["b"]], ["zz"], [], lambda: True, lambda n, m: None, nn.LSTM, NAN),
    "exclude": (3, [None], ["zz"], lambda n: True, lambda n, m: 1 / 0, nn.Linear(2, 2), itertools.repeat("b")),
    "leaf_modules": (None, 3, [None], ["zz"], nn.Linear(2, 2), nn.LSTM, int),
    "device": ("tpu", "cuda:99", "cpu:7", "meta", "", b"cpu", ["cpu"], True, NAN, HUGE, 2.5),
    "flops": (0, 1.5, NAN, "0.5", True),
}
PATTERNS = ("4:2", "0:4", "2:0", "2:4:8", "3:7", -0.1, 0.0, 1.0, 1.5, NAN, INF, True, "50%%", "150%", "nan", "", "  ")
PATTERNS += (b"2:4", (2, 4), ["2:4"], None, object(), snows.NM, 10**400, "1e400", "2" * 5000 + ":4", "٢:٤", 1e-9, {})
PATTERNS += ({"zz": 0.5}, {3: 0.5}, {"b": None}, {"b": NAN}, {"b": 2}, {"b": "x"}, "b=", "b=x", "=0.5", 0.5j, {0.5})

CASES = {
    f"{name}={shown(value)[:40]}": (name, "expected", lambda n=name, v=value: prune(**{n: v}))
    for name, values in NUMBERS.items()
    for value in values
}
CASES |= {
    f"pattern={shown(value)[:40]}": ("pattern", "", lambda v=value: snows.prune(net(), images(), v, progress=False))
    for value in PATTERNS
}

IMAGES = {
    "None": (lambda: None, "NoneType"),
    "text": (lambda: "images/", "type str"),
    "bytes": (lambda: b"abc", "type int"),
    "class": (lambda: list, "type"),
    "empty list": (list, "no batches"),
    "empty dictionary": (dict, "no batches"),
    "empty generator": (lambda: iter(()), "no batches"),
    "endless": (lambda: itertools.repeat(images(4)), "without an end"),
    "endless and empty": (lambda: itertools.repeat(images(0)), "without an image"),
    "numbers": (lambda: [1, 2], "type int"),
    "nothing in a batch": (lambda: [None], "NoneType"),
    "unknown key": (lambda: [{"foo": images()}], "keys foo"),
    "nested": (lambda: [[[images()]]], "begins with a list"),
    "array": (lambda: images().numpy(), "ndarray"),
    "generator that fails": (lambda: raising(OSError("disk on fire")), "batch 2 (OSError: disk on fire)"),
    "one image": (lambda: images()[0], "unsqueeze"),
    "five axes": (lambda: images()[None], "shape (1, 40, 3, 8, 8)"),
    "no image": (lambda: images(0), "0 images"),
    "no channel": (lambda: images()[:, :0], "channels and pixels"),
    "no pixel": (lambda: images()[..., :0], "channels and pixels"),
    "bytes of pixels": (lambda: images().to(torch.uint8), "uint8"),
    "complex": (lambda: images().to(torch.complex64), "complex64"),
    "float8": (lambda: images().to(torch.float8_e4m3fn), "float8"),
    "quantised": (lambda: torch.quantize_per_tensor(images(), 0.1, 0, torch.quint8), "quantised"),
    "sparse": (lambda: images().to_sparse(), "to_dense"),
    "meta": (lambda: images().to("meta"), "meta device"),
    "a batch of them meta": (lambda: [images(4), images(4).to("meta")], "meta device"),
    "NaN": (lambda: images().index_fill(0, torch.tensor([3, 5]), NAN), "2 images with NaN"),
    "infinite": (lambda: images() * INF, "40 images"),
    "another number of channels": (lambda: images(channels=1), "which the model refuses"),
    "too small": (lambda: images(size=2), "which the model refuses"),
    "two sizes": (lambda: [images(4), images(4, size=9)], "one shape"),
}
CASES |= {f"images: {name}": ("images", word, lambda f=f: bad_images(f())) for name, (f, word) in IMAGES.items()}
EVALUATED = ("None", "text", "numbers", "one image", "no pixel", "complex", "float8", "sparse", "meta", "NaN",
             "endless and empty", "generator that fails", "another number of channels")  # fmt: skip
CASES |= {f"evaluate: {name}": ("images", IMAGES[name][1], lambda f=IMAGES[name][0]: evaluate(f()))
          for name in EVALUATED}  # fmt: skip
CASES |= {f"test: {name}": ("test", IMAGES[name][1], lambda f=IMAGES[name][0]: compare(test=f()))
          for name in ("None", "text", "one image", "meta", "NaN", "another number of channels")}  # fmt: skip

MODELS = {
    "None": (lambda: None, "NoneType"),
    "class": (lambda: Net, "type"),
    "name": (lambda: "resnet50", "str"),
    "state dict": (lambda: net().state_dict(), "OrderedDict"),
    "train mode": (lambda: net().train(), "model.eval()"),
    "a part in train mode": (lambda: net(lambda m: m.b.train()), "'b'"),
    "without layers": (lambda: nn.Sequential(nn.ReLU()).eval(), "without a convolution or linear layer"),
    "scripted": (lambda: torch.jit.script(net()), "scripted"),
    "NaN weight": (lambda: nan_in("b.weight"), "NaN or infinite weights in layer 'b' (weight)"),
    "NaN bias": (lambda: nan_in("fc.bias"), "NaN or infinite weights in layer 'fc' (bias)"),
    "infinite": (lambda: nan_in("c.weight", INF), "NaN or infinite weights in layer 'c' (weight)"),
    "meta": (lambda: net().to("meta"), "meta device"),
    "a part on meta": (lambda: net(lambda m: m.b.to("meta")), "'b.weight' on the meta device"),
    "two inputs": (lambda: TwoInputs().eval(), "needs 2 inputs (image, age)"),
    "no input": (lambda: type("Z", (Net,), {"forward": lambda self: 0})().eval(), "no input"),
    "no forward": (lambda: nn.ModuleList([net()]).eval(), "forward"),
    "returns None": (lambda: Wrapped(lambda y: None).eval(), "without a convolution or linear layer"),
    "fails": (lambda: type("F", (Net,), {"forward": lambda self, x: {}["key"]})().eval(), "KeyError: 'key'"),
    "asks its values": (lambda: Wrapped(lambda y: y if y.sum() > 0 else -y).eval(), "cannot be traced"),
    "two number formats": (lambda: net(lambda m: m.fc.double()), "torch.float32, torch.float64"),
    "sparse": (lambda: net(lambda m: setattr(m.fc, "weight", nn.Parameter(m.fc.weight.to_sparse()))), "to_dense"),
    "lazy": (lambda: nn.Sequential(nn.LazyConv2d(3, 3)).eval(), "lazy"),
    "without a weight": (lambda: net(lambda m: setattr(m.b, "weight", None)), "NoneType"),
}
CASES |= {f"model: {name}": ("model", word, lambda f=f: bad_model(f())) for name, (f, word) in MODELS.items()}
FUNCTIONS = {
    "apply_masks": ("model", lambda model: snows.apply_masks(model, masks())),
    "import_masks": ("model", lambda model: snows.import_masks(masks(), model)),
    "permute_channels": ("model", lambda model: snows.permute_channels(model, images(2), "2:4")),
    "compact": ("model", lambda model: snows.compact(model, images(2))),
    "eligibility": ("model", snows.eligibility),
    "sizes": ("model", snows.sizes),
    "finetune": ("model", lambda model: snows.finetune(model, images(8), torch.zeros(8).long())),
    "to_semi_structured": ("model", lambda model: snows.to_semi_structured(model, images(2))),
    "evaluate": ("reference", lambda model: evaluate(reference=model if model is not None else "none")),
    "compare": ("model", lambda model: snows.compare(model, images(), test=images(8))),
    "match_variances": ("reference", lambda model: snows.match_variances(net(), model, images())),
}
CASES |= {f"{function}: {name}": (argument, "", lambda c=call, m=MODELS[name][0]: c(m()))
          for function, (argument, call) in FUNCTIONS.items()
          for name in ("None", "class", "meta", "lazy")}  # fmt: skip
