"""evaluate.py on networks without classes, and on two networks at once."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toys import random_images, small_resnet

from snows_core.evaluate import evaluate, evaluate_both, metrics_frame

IMAGES = random_images(23)
LABELS = torch.arange(23) % 3


class Backbone(nn.Module):
    """Says as timm's networks do that it has no classes; gives features."""

    num_classes = 0

    def __init__(self, seed=0):
        super().__init__()
        self.layer = nn.Linear(3, 4).double()
        torch.manual_seed(seed)
        nn.init.normal_(self.layer.weight)

    def forward(self, x):
        return self.layer(x.flatten(1)[:, :3])


class Pooled(Backbone):
    num_classes = None

    def forward(self, x):
        return {"pooler_output": super().forward(x)}


@pytest.mark.parametrize("kind", [Backbone, Pooled])
def test_features_are_compared_where_a_network_has_no_classes(kind):
    dense, other = kind(), kind(seed=1)
    for source in (IMAGES, [(IMAGES[:9], LABELS[:9]), (IMAGES[9:], LABELS[9:])]):  # labels do not count
        found = evaluate(other, source, reference=dense)
        x, y = (Backbone.forward(net, IMAGES).detach() for net in (other, dense))
        cosine = float(F.cosine_similarity(x, y).mean())
        assert found.cosine == pytest.approx(cosine, rel=1e-5) and 0 < found.cka < 1 and 0 <= found.neighbours < 100
        assert (found.images, found.accuracy, found.agreement, found.kl) == (23, None, None, None)
    frame = metrics_frame(evaluate(dense, IMAGES), found)
    assert list(frame) == ["cosine", "CKA", "same neighbour %", "images"]


def test_features_can_be_asked_for_and_declined():
    dense, other = Backbone(), Backbone(seed=1)
    assert evaluate(other, IMAGES, reference=dense, features=False).kl > 0
    assert evaluate(small_resnet(seed=4), IMAGES, reference=small_resnet(), features=True).cosine < 1


def test_both_networks_are_measured_in_one_pass():
    model, dense, read = small_resnet(seed=4), small_resnet(), []
    batches = ((IMAGES[part], LABELS[part]) for part in (slice(0, 9), slice(9, 23)) if read.append(part) is None)
    reference, pruned = evaluate_both(model, dense, batches)
    wanted = evaluate(model, IMAGES, LABELS, reference=dense)
    assert (pruned.accuracy, pruned.agreement, pruned.images) == (wanted.accuracy, wanted.agreement, 23)
    assert pruned.kl == pytest.approx(wanted.kl, rel=1e-9) and len(read) == 2
    assert reference == evaluate(dense, IMAGES, LABELS)
    alone, found = evaluate_both(Backbone(seed=1), Backbone(), [IMAGES])
    assert alone.images == 23 and found.cosine < 1
