"""provenance.py and errors.py: what a number was made with, and the form of every error."""

import importlib
import json
import subprocess

import pytest
import torch

from snows_core.errors import SnowsError, closest, invalid_argument

module = importlib.import_module("snows_core.provenance")  # the package's attribute of that name is the function


def test_record_is_json_and_carries_what_the_caller_knows():
    record = module.provenance(seed=3, calibration=[1, 2])
    assert json.loads(json.dumps(record)) == record
    assert record["seed"] == 3 and record["calibration"] == [1, 2]
    assert set(record["versions"]) >= {"python", "torch", "torchvision", "timm", "snows-core"}


def test_digest_tells_images_apart_and_forgets_the_device_dtype():
    images = torch.randn(4, 3, 2, 2)
    assert module.tensor_digest(images) == module.tensor_digest(images.clone().double())
    assert module.tensor_digest(images) != module.tensor_digest(images + 1e-3)
    assert module.tensor_digest(images) != module.tensor_digest(images.flatten(1))
    assert len(module.tensor_digest(images)) == 16


@pytest.mark.parametrize("error", [OSError("no git"), subprocess.TimeoutExpired("git", 10)])
def test_without_git_there_is_no_commit_and_no_error(monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(subprocess, "run", fail)
    assert module.commit() is None


def test_a_package_that_is_not_there_is_said_to_be_missing(monkeypatch):
    monkeypatch.setattr(module, "_PACKAGES", ("surely-not-installed",))
    assert module.versions()["surely-not-installed"] == "not installed"


def test_errors_name_argument_got_expected_and_fix():
    error = invalid_argument("k", -1, "an integer >= 0", "Use k=0.")
    assert isinstance(error, SnowsError) and isinstance(error, ValueError)
    assert str(error) == "k: got -1; expected an integer >= 0. Use k=0."
    assert str(invalid_argument("k", -1, "an integer >= 0")) == "k: got -1; expected an integer >= 0."


def test_nearest_names_are_offered_best_first_or_not_at_all():
    assert closest("resnet5", ["resnet50", "resnet56", "vit"]).startswith("Nearest: resnet5")
    assert closest("qqqq", ["resnet50"]) == ""
