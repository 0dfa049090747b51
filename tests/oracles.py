"""The K-step loss written a second time, from the image on: by hooks on the model itself, or on the traced graph.

Neither knows anything of segments, folded batch norms, batches or streams; the hooks know nothing of torch.fx either.
"""

import torch
from torch import fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from toys import make_problem, nudged


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


class Recorder(fx.Interpreter):
    """Runs a whole traced network with some weights replaced, and keeps what was asked for."""

    def __init__(self, module, weights, wanted):
        super().__init__(module, garbage_collect_values=False)
        self.weights, self.wanted, self.seen = weights, wanted, {}

    def run_node(self, node):
        value = super().run_node(node)
        if node in self.wanted:
            self.seen[node] = value
        return value

    def fetch_attr(self, target):
        return self.weights[target] if target in self.weights else super().fetch_attr(target)

    def call_module(self, target, args, kwargs):
        if f"{target}.weight" not in self.weights:
            return super().call_module(target, args, kwargs)
        own = {"weight": self.weights[f"{target}.weight"]}
        return torch.func.functional_call(self.submodules[target], own, args, kwargs)


class Oracle:
    """The K-step loss of a problem by plain autograd.

    Args:
        problem: the layer's problem.
        images: all of its images.
        model: the network itself, where ``taps`` are told.
        taps: where each tap shows in the model, as (module, which call, "out" or "in"); else the graph is run.
    """

    def __init__(self, problem, images, model=None, taps=None):
        self.problem, self.images, self.model, self.taps = problem, images, model, taps
        with torch.no_grad():
            self.targets = self._taps_with({})

    def _taps_with(self, weights):
        with sdpa_kernel(SDPBackend.MATH):
            if self.taps is not None:
                return observed(self.model, self.taps, self.images, weights)
            wanted = self.problem.segment.taps
            recorder = Recorder(self.problem.network.module, weights, set(wanted))
            recorder.run(self.images)
            return [recorder.seen[tap] for tap in wanted]

    def outputs(self, weight):
        return self._taps_with({**self.problem.pruned.weights, self.problem.layer.weight_name: weight})

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
        """Return the rows and columns of the kept weights."""
        kept = self.problem.mask.flatten()
        return matrix.reshape(kept.numel(), kept.numel())[kept][:, kept].detach()

    def derivatives(self, weight, direction):
        """Return loss, gradient, and the products of Hessian and Gauss-Newton matrix with a direction."""
        mask = self.problem.mask
        direction, free = direction * mask, weight.clone().requires_grad_()
        r = self.residuals(free)
        loss = r @ r
        (slope,) = torch.autograd.grad(loss, free, create_graph=True)
        (hessian,) = torch.autograd.grad(slope, free, direction, retain_graph=True)
        u = torch.zeros_like(r, requires_grad=True)
        (back,) = torch.autograd.grad(r, free, u, create_graph=True)
        (forward,) = torch.autograd.grad(back, u, direction, retain_graph=True)
        (gauss_newton,) = torch.autograd.grad(r, free, 2 * forward)
        return loss.item(), slope.detach() * mask, {"hessian": hessian * mask, "gauss-newton": gauss_newton * mask}


class Case(Oracle):
    """A layer's problem, a weight away from the dense one, and the same loss by plain autograd."""

    def __init__(self, model, name, taps, images, k, mask=None, sizes=None, **options):
        for block in getattr(model, "blocks", ()):
            block.attn.fused_attn = True
        batches = images.split(sizes or len(images))
        problem = make_problem(model, batches, name, k, mask=mask, **options)
        super().__init__(problem, images, model, None if taps is None else taps[: k + 1])
        self.weight, self.mask = nudged(problem.weight) * problem.mask, problem.mask
        self.objective, self.key = problem.objective, problem.layer.weight_name
