"""Small ONNX graphs made by hand, and weights whose groups of four run along the inputs alone."""

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from snows_core.masks.patterns import NM


def two_of_four(out=8, inputs=8, *kernel, seed=0):
    """Return a 2:4 weight in which no groups of four along another axis are 2:4."""
    weight = torch.randn(out, inputs, *kernel, generator=torch.Generator().manual_seed(seed)).abs() + 0.1
    return (weight * NM(2, 4).mask(weight)).numpy()


def written(path, nodes, tensors, inputs=("x",), outputs=("y",), opset=17, external=False, metadata=None, **constants):
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inputs]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    known = [
        value if isinstance(value, TensorProto) else numpy_helper.from_array(value, name)
        for name, value in tensors.items()
    ]
    graph = helper.make_graph(nodes, "graph", infos, results, known)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=value)
    if external:
        onnx.save(model, path, save_as_external_data=True, location=path.name + ".data", size_threshold=0)
    else:
        onnx.save(model, path)
    return path


def node(op, *inputs, output="y", **attributes):
    return helper.make_node(op, list(inputs), [output], **attributes)


W = two_of_four()
