"""segment_plot.py: the boxes are the operations of the segment, in the colours that say what is done with them."""

import matplotlib.pyplot as plt
import pytest
import timm
from matplotlib.colors import to_hex

from snows_core.book.segment_plot import STATES, draw_segment, segment_legend
from snows_core.errors import SnowsError
from snows_core.network import Network


@pytest.fixture(scope="module")
def bottlenecks():
    return Network(timm.create_model("resnet50", num_classes=4).eval())


def drawn(network, layer, k, count=12):
    figure, ax = plt.subplots()
    draw_segment(ax, network, layer, k, count)
    states = {colour: state for state, (colour, _) in STATES.items()}
    boxes = [(states[to_hex(patch.get_facecolor())], patch.get_y() + 0.5) for patch in ax.patches[:count]]
    words = [text.get_text() for text in ax.texts if text.get_text()]
    plt.close(figure)
    return boxes, words


def test_a_bottleneck_is_six_operations_and_the_addition_is_run_in_between(bottlenecks):
    boxes, words = drawn(bottlenecks, "layer1.1.conv1", 5)
    assert words[:7] == ["1 × 1", "ReLU", "3 × 3", "ReLU", "1 × 1", "+", "ReLU"]
    assert [state for state, _ in boxes] == [*["compared"] * 5, "run", "compared", *["outside"] * 5]
    assert all(height == 0 for _, height in boxes)


def test_a_convolution_on_the_shortcut_stands_above_the_row_and_is_run_once(bottlenecks):
    boxes, words = drawn(bottlenecks, "layer2.0.conv1", 5)
    raised = [number for number, (_, height) in enumerate(boxes) if height > 0]
    assert raised == [5] and boxes[5][0] == "beside" and words[5:7] == ["1 × 1", "+"]


def test_a_transformer_has_attention_and_norms_in_one_row():
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=12, num_classes=4).eval()
    boxes, words = drawn(Network(model), "blocks.0.attn.qkv", 3, count=9)
    assert words == ["qkv", "att", "proj", "+", "norm", "fc1", "GELU", "fc2", "+"]
    assert [state for state, _ in boxes[:6]] == [*["compared"] * 3, "run", "compared", "outside"]


def test_the_legend_explains_what_is_asked_for_and_an_unknown_layer_is_refused(bottlenecks):
    figure, ax = plt.subplots()
    segment_legend(figure, ("compared", "outside"))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["run and compared", "not looked at"]
    with pytest.raises(SnowsError, match=r"layer1\.0\.conv1"):
        draw_segment(ax, bottlenecks, "layer1.0.conv", 1)
    plt.close(figure)
