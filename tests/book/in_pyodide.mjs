// Run the code cells of a notebook in Pyodide under Node: node in_pyodide.mjs FOLDER_OF_PYODIDE NOTEBOOK
// Prints what the cells print. Where the folder has no Matplotlib, an object that accepts every call stands in for it.
import { readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";

const [folder, notebook] = process.argv.slice(2).map((path) => resolve(path));
const { loadPyodide } = await import(pathToFileURL(join(folder, "pyodide.mjs")));
const pyodide = await loadPyodide({ indexURL: folder + "/" });
await pyodide.loadPackage("numpy");
if (process.env.WITH_MATPLOTLIB) {
  await pyodide.loadPackage("matplotlib");
} else {
  pyodide.runPython(`
import sys
from unittest.mock import MagicMock

pyplot = MagicMock(name="pyplot")
pyplot.rcParams = {}
axes = [MagicMock(name="axes") for _ in range(2)]
pyplot.subplots = lambda *size, **more: (MagicMock(name="figure"), axes if size else axes[0])
sys.modules["matplotlib"] = MagicMock(name="matplotlib", pyplot=pyplot)
sys.modules["matplotlib.pyplot"] = pyplot
`);
}
for (const cell of JSON.parse(readFileSync(notebook, "utf8")).cells) {
  // A value that is handed back would be awaited, and the stand-in has every attribute that a promise has.
  if (cell.cell_type === "code") await pyodide.runPythonAsync([cell.source].flat().join("") + "\nNone");
}
