"""Layers by loops and NumPy alone: patches, outputs, masked ridge solutions row by row."""

import numpy as np
import torch
from torch import nn

RIDGE = 1e-3


def patch_rows(x, module):
    """Every patch that a layer reads, by loops: (groups, positions, d), and the shape of the output's positions."""
    if isinstance(module, nn.Linear):
        return x.reshape(1, -1, x.shape[-1]), x.shape[:-1]
    (kh, kw), (sh, sw), (ph, pw), groups = module.kernel_size, module.stride, module.padding, module.groups
    x = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    high, wide, own = (x.shape[2] - kh) // sh + 1, (x.shape[3] - kw) // sw + 1, x.shape[1] // groups
    rows = [
        [
            image[g * own : (g + 1) * own, i * sh : i * sh + kh, j * sw : j * sw + kw].ravel()
            for image in x
            for i in range(high)
            for j in range(wide)
        ]
        for g in range(groups)
    ]
    return np.array(rows), (len(x), high, wide)


def outputs_of(rows, weight):
    """(positions, out) of patch rows and a weight (out, d), group by group, without the bias."""
    grouped = weight.reshape(len(rows), -1, weight.shape[1])
    return np.concatenate([patches @ own.T for patches, own in zip(rows, grouped, strict=True)], axis=1)


def applied(x, module, weight):
    rows, places = patch_rows(x, module)
    y = outputs_of(rows, weight) + module.bias.detach().numpy()
    y = y.reshape(*places, -1)
    return y if isinstance(module, nn.Linear) else np.moveaxis(y, -1, 1)


def refitted(x, x0, module, mask):
    """The masked ridge solution of one layer, row by row, and its mean squared error: all by NumPy."""
    dense = module.weight.detach().flatten(1).numpy()
    rows, rows0 = patch_rows(x, module)[0], patch_rows(x0, module)[0]
    grams = [patches.T @ patches for patches in rows]
    damping = RIDGE * np.mean([np.diag(matrix) for matrix in grams])
    weight, share = np.zeros(dense.shape), len(dense) // len(rows)
    for i, kept in enumerate(mask):
        g = i // share
        cross = rows[g].T @ rows0[g]
        right = cross @ dense[i] + damping * dense[i]
        weight[i, kept] = np.linalg.solve(grams[g][np.ix_(kept, kept)] + damping * np.eye(kept.sum()), right[kept])
    error = np.mean((outputs_of(rows, weight) - outputs_of(rows0, dense)) ** 2)
    return weight, error


def rows_problem(rows=5, inputs=12, samples=40, groups=1, seed=0, keep=0.5):
    """Inputs, dense inputs, dense weight and mask of a layer-wise problem."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(groups, samples, inputs, generator=generator, dtype=torch.float64)
    x0 = x + 0.3 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    weight = torch.randn(rows, inputs, generator=generator, dtype=torch.float64)
    mask = torch.rand(rows, inputs, generator=generator) < keep
    mask[:, 0] = True
    return x, x0, weight, mask


def solved_row_by_row(matrix, damping, mask, rhs, scale=None):
    result = torch.zeros_like(rhs)
    for i in range(len(rhs)):
        kept = mask[i].nonzero().flatten()
        own = matrix[i // (len(rhs) // len(matrix))][kept][:, kept] + damping * torch.eye(len(kept), dtype=rhs.dtype)
        result[i, kept] = torch.linalg.solve(own * (1.0 if scale is None else scale[i]), rhs[i, kept])
    return result


def lstsq_row_by_row(x, x0, weight, mask, damping):
    """Solve ``min |w X - w0 X0|^2 + damping |w - w0|^2`` on each row's support by NumPy."""
    result = np.zeros(weight.shape)
    for i, (row, kept) in enumerate(zip(weight.numpy(), mask.numpy(), strict=True)):
        own = x[i // (len(weight) // len(x))].numpy()
        own0 = x0[i // (len(weight) // len(x))].numpy()
        columns = np.concatenate([own[:, kept], np.sqrt(damping) * np.eye(kept.sum())])
        target = np.concatenate([own0 @ row, np.sqrt(damping) * row[kept]])
        result[i, kept] = np.linalg.lstsq(columns, target, rcond=None)[0]
    return torch.from_numpy(result)
