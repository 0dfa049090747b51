"""schemas.py: YAML of plain values within bounds; notebooks get parameters as data."""

from __future__ import annotations

import ast
import time

import nbformat
import pytest

from snows_core.book.profiles import Profile
from snows_core.book.schemas import MOST_NODES, plain_yaml, read_yaml
from snows_core.errors import SnowsError

NINES = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (NINES, "an anchor or alias in line 1"),
        ("a: *b", "an anchor or alias in line 1"),
        ("<<: &a {b: 1}", "an anchor or alias"),
        ("[" * 100_000, "deeper than 60 levels"),
        ("a: " + "{a: " * 5000 + "1" + "}" * 5000, "deeper than 60 levels"),
        ("- " * 3000 + "1", "deeper than 60 levels"),
        ("[" + "1," * (MOST_NODES + 1) + "]", "more than 50,000 values"),
        ("a: !!python/object/apply:os.system ['true']", "no YAML: could not determine a constructor"),
        ("a: !!python/name:os.system", "no YAML: could not determine a constructor"),
        ("a: [", "no YAML"),
        ("a: \x00", "no YAML"),
        ("a: 2020-13-01", "month must be in 1..12"),
        ("a: " + "9" * 5000, "limit"),
        ("{a: 1}: 2", "no YAML: while constructing a mapping"),
    ],
)
def test_what_is_no_plain_yaml_is_refused_at_once(text, reason):
    started = time.process_time()
    with pytest.raises(ValueError, match=reason) as caught:
        plain_yaml(text)
    assert time.process_time() - started < 10 and "\n" not in str(caught.value)


def test_plain_values_come_back():
    assert plain_yaml("a: [1, 2.5, x]\nb: {c: true}\n") == {"a": [1, 2.5, "x"], "b": {"c": True}}
    assert plain_yaml("") is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("description: é".encode("latin-1"), "x.yaml: cannot be read (no UTF-8 text: byte 0xe9 at 13)"),
        (b"# " + b"x" * 1_000_000, "x.yaml: cannot be read (more than 1,000,000 bytes)"),
        (b"- 1", "x.yaml: got [1]"),
        (b"needs: {minutes: long}", "x.yaml: needs.minutes: got 'long'"),
        (b"needs: {minutes: .nan}", "x.yaml: needs.minutes: got nan"),
        (b"parameters: {size: 2020-01-01}", "x.yaml: parameters.size"),
        (b"parameters: {size: !!set {a, b}}", "x.yaml: parameters.size"),
        (b"parameters: {1: 2}", "x.yaml: parameters.1"),
    ],
)
def test_a_profile_that_is_none_names_the_place(tmp_path, content, words):
    (tmp_path / "x.yaml").write_bytes(content)
    with pytest.raises(SnowsError) as caught:
        read_yaml(tmp_path / "x.yaml", Profile, "description, needs, parameters")
    assert str(caught.value).startswith(words) and caught.value.argument != "profile"


def test_parameters_go_into_a_notebook_as_data(tmp_path):
    """Papermill writes them as literals; whatever a text holds, Python reads back that text and nothing more."""
    from papermill.iorw import load_notebook_node
    from papermill.parameterize import parameterize_notebook

    cell = nbformat.v4.new_code_cell('profile = "digits"', metadata={"tags": ["parameters"]})
    spec = {"name": "python3", "display_name": "python3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": spec}), tmp_path / "01_a.ipynb")
    notebook = load_notebook_node(str(tmp_path / "01_a.ipynb"))
    values = {
        "profile": "'; import os; os.mkdir('x') #",
        "size": '"\n!touch x\n%run x\n\\',
        "name": "{profile} $HOME `touch x` \\",
        "sizes": ["'''", '"""', 1, 2.5, None, True, {"a": "\u2028\r"}],
    }
    made = parameterize_notebook(notebook, values)
    (injected,) = [cell for cell in made.cells if "injected-parameters" in cell.metadata.tags]
    body = ast.parse(injected.source).body
    assert {line.targets[0].id: ast.literal_eval(line.value) for line in body} == values
