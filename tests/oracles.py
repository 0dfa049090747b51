"""The K-step loss written a second time, with the model itself and hooks: an oracle that knows nothing of torch.fx."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from toys import make_problem, nudged, random_images, random_mask, small_resnet, small_vit

# Where each tap of a segment shows in the model itself, as (module, which call, "out" or "in"): an oracle that knows
# nothing of torch.fx. The attention product has no module; its values are the input of the projection behind it.
RESNET_TAPS = [
    ("layer1.bn1", 0, "out"),
    ("layer1.relu", 0, "out"),
    ("layer1.bn2", 0, "out"),
    ("layer1.relu", 1, "out"),
    ("layer2.bn1", 0, "out"),
    ("layer2.relu", 0, "out"),
    ("layer2.bn2", 0, "out"),
    ("layer2.downsample.1", 0, "out"),
    ("layer2.relu", 1, "out"),
    ("fc", 0, "out"),
]
VIT_TAPS = [
    ("blocks.0.attn.qkv", 0, "out"),
    ("blocks.0.attn.proj", 0, "in"),
    ("blocks.0.attn.proj", 0, "out"),
    ("blocks.0.norm2", 0, "out"),
    ("blocks.0.mlp.fc1", 0, "out"),
    ("blocks.0.mlp.act", 0, "out"),
    ("blocks.0.mlp.fc2", 0, "out"),
    ("blocks.1.norm1", 0, "out"),
    ("blocks.1.attn.qkv", 0, "out"),
]


def observed(model, taps, images, weights=None):
    """Run the model itself and return the values at taps, caught by hooks before anything writes over them."""
    seen, hooks = {}, []

    def note(name, where, value):
        calls = sum(1 for key in seen if key[0] == name and key[2] == where)
        seen[name, calls, where] = value.clone()

    for name in {tap[0] for tap in taps}:
        module = model.get_submodule(name)
        hooks.append(module.register_forward_pre_hook(lambda m, args, name=name: note(name, "in", args[0])))
        hooks.append(module.register_forward_hook(lambda m, args, out, name=name: note(name, "out", out)))
    try:
        torch.func.functional_call(model, weights or {}, (images,))
    finally:
        for hook in hooks:
            hook.remove()
    return [seen[tap] for tap in taps]


class Case:
    """A layer's problem and, beside it, the same loss written with the model itself."""

    def __init__(self, model, name, taps, images, k, mask=None, sizes=None, **options):
        if hasattr(model, "blocks"):
            for block in model.blocks:
                block.attn.fused_attn = True
        batches = images.split(sizes or len(images))
        self.problem = make_problem(model, batches, name, k, mask=mask, **options)
        self.weight, self.mask = nudged(self.problem.weight) * self.problem.mask, self.problem.mask
        self.objective, self.model, self.images = self.problem.objective, model, images
        self.key, self.taps = f"{name}.weight", taps[: k + 1]
        with torch.no_grad():
            self.targets = observed(model, self.taps, images)

    def outputs(self, weight):
        with sdpa_kernel(SDPBackend.MATH):
            return observed(self.model, self.taps, self.images, {self.key: weight})

    def loss(self, weight):
        """Mean squared error of every tap, added up: the definition in DESIGN section 1."""
        pairs = zip(self.outputs(weight), self.targets, strict=True)
        return sum((output - target).square().mean() for output, target in pairs)

    def residuals(self, weight):
        """All errors in one vector r, scaled so that the loss is r'r."""
        return torch.cat(
            [
                (output - target).flatten() / output.numel() ** 0.5
                for output, target in zip(self.outputs(weight), self.targets, strict=True)
            ]
        )

    def dense(self, matrix):
        kept = self.mask.flatten()
        return matrix.reshape(kept.numel(), kept.numel())[kept][:, kept].detach()


def resnet_case(k=9, **options):
    model = small_resnet()
    mask = random_mask(model.layer1.conv1.weight.shape)
    return Case(model, "layer1.conv1", RESNET_TAPS, random_images(5, 6), k, mask, **options)


def vit_case(k=8, keep=0.4, **options):
    model = small_vit()
    mask = random_mask(model.blocks[0].attn.qkv.weight.shape, keep)
    return Case(model, "blocks.0.attn.qkv", VIT_TAPS, random_images(5, 4), k, mask, **options)


CASES = {"resnet": resnet_case, "vit": vit_case}
