"""`snows eligibility`, `snows sizes`: a saved folder, a network by name, the checklist; mistakes are one sentence."""

import pytest
from typer.testing import CliRunner

import snows_core as snows
from snows_core.cli import app as cli


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    out = tmp_path_factory.mktemp("eligible") / "pruned"
    options = ["--model", "digits-resnet20", "--images", 16, "--layers", "layer3.*", "--update", "none", "--quiet"]
    done = run("prune", *options, "--pattern", "1:4", "--out", out)
    assert done.exit_code == 0, done.output
    return out


def test_a_folder_is_judged_by_its_own_weights(pruned):
    done = run("eligibility", pruned, "--gpu", "a100")
    assert done.exit_code == 0, done.output
    line = next(line for line in done.output.splitlines() if line.lstrip().startswith("layer3.2.conv2"))
    assert line.split()[-6:] == ["1:4", "no", "(layer)", "no", "(layer)", "yes"]
    text = " ".join(done.output.split())
    assert "A100 (compute capability 8.0), weights in float16" in text and "1:4 complies with 2:4" in text
    assert "of the multiplications" in text and "not faster" in text
    assert "(architecture)" in run("eligibility", pruned, "--gpu", "t4").output


def test_a_network_by_name_is_judged_as_if_pruned():
    done = run("eligibility", "--model", "digits-vit-b", "--gpu", "h100", "--batch", 3)
    assert done.exit_code == 0, done.output
    assert "as if every layer were pruned to 2:4" in done.output and "no (architecture)" in done.output
    none = run("eligibility", "--model", "digits-vit-b", "--gpu", "h100", "--pattern", "4:8")
    assert "PyTorch cuSPARSELt can take 0 of" in none.output and "no speed" in none.output


def test_the_checklist_needs_no_network(pruned):
    done = run("eligibility", "--checklist")
    assert done.exit_code == 0 and done.output.strip() == snows.export.checklist()
    both = run("eligibility", pruned, "--checklist")
    assert both.output.endswith(done.output) and "layer3.2.conv2" in both.output


def test_sizes_of_a_folder(pruned):
    done = run("sizes", pruned)
    assert done.exit_code == 0, done.output
    frame = snows.sizes(snows.load(pruned))
    for row in frame.itertuples():
        assert f"{row.storage}" in done.output and f"{row.pruned_weights:,}" in done.output
    assert "100.0%" in done.output and "None but 2:4 packed runs faster" in done.output and "Symbols" in done.output


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["eligibility"], "error: --model: got nothing to measure"),
        (["eligibility", "nowhere"], "error: folder: got"),
        (["eligibility", "--model", "digits-resnet20", "--gpu", "b20"], "error: --gpu: got 'b20'"),
        (["eligibility", "--model", "digits-resnet20", "--dtype", "fp16"], "error: --dtype: got 'fp16'"),
        (["eligibility", "--model", "digits-resnet20", "--pattern", "0.5"], "error: --pattern: got unstructured 0.5"),
        (["eligibility", "--model", "no-such"], "error: --model: got"),
        (["sizes", "nowhere"], "error: folder: got"),
    ],
)
def test_mistakes_are_one_sentence(line, words):
    done = run(*line)
    assert done.exit_code == 2 and done.output.startswith(words) and done.output.count("\n") == 1
