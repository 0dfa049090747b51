"""checkpoint.py: what its records say of a run when they are read again."""

import torch

from snows_core.methods.base import LayerSolution, LayerStatistics
from snows_core.sweep.checkpoint import Checkpoint

CPU = torch.device("cpu")


class Listed:
    """A journal in memory, whose records all stay: a run may be killed before those that are replaced are gone."""

    def __init__(self):
        self.records = []

    def add(self, record, replaces=()):
        self.records.append(record)


def solution(number, products, seconds):
    """A layer whose weight is a number everywhere, and what it cost; a product is of eight images."""
    costs = {"products": products, "image_products": 8 * products, "seconds": seconds}
    weight, mask = torch.full((2, 2), float(number)), torch.ones(2, 2, dtype=torch.bool)
    return LayerSolution(weight, mask, LayerStatistics(1, 3.0, 2.0, 1.0, **costs))


def costs(done):
    return done.statistics.products, done.statistics.image_products, done.statistics.seconds


def test_costs_are_those_of_all_stages_and_of_the_last_one_alone():
    journal = Listed()
    first = Checkpoint("kept", [], journal)
    first.keep_stage(2, [{"pattern": "3:4"}], {"a": solution(1, 5, 2.0), "b": solution(2, 7, 3.0)})
    first.keep_layer("a", solution(3, 11, 4.0), 16)
    reached = Checkpoint("kept", journal.records, None).reached(CPU)
    assert (reached.stage, reached.solved, reached.batch_size) == (2, {"a"}, 16)
    assert costs(reached.solutions["a"]) == (16, 128, 6.0) and costs(reached.alone["a"]) == (11, 88, 4.0)
    assert costs(reached.solutions["b"]) == (7, 56, 3.0)
    weights = [reached.solutions["a"].weight, reached.before["a"], reached.solutions["b"].weight]
    assert [float(weight[0, 0]) for weight in weights] == [3.0, 1.0, 2.0]


def test_a_stage_replaces_the_layers_before_it():
    journal = Listed()
    first = Checkpoint("kept", [], journal)
    first.keep_masks({"a": torch.zeros(2, 2, dtype=torch.bool)}, {})
    first.keep_layer("a", solution(1, 5, 2.0), 16)
    first.keep_stage(2, [{"pattern": "3:4"}], {"a": solution(2, 7, 3.0)})
    again = Checkpoint("kept", journal.records, None)
    assert again.found == {"stage": 2, "layers": 0, "joint_step": None}
    reached = again.reached(CPU)
    assert not reached.solved and not reached.pending and float(reached.solutions["a"].weight[0, 0]) == 2.0
