"""README's table of results is the one that figures/ records."""

import json

import results_table


def test_readme_shows_the_recorded_results():
    readme = (results_table.ROOT / "README.md").read_text()
    record = json.loads(results_table.METRICS.read_text())
    assert results_table.updated(readme, results_table.results(record)) == readme, "run python tools/results_table.py"
