"""What is taken over from an executed notebook into the committed one, and what is not."""

from __future__ import annotations

import base64
import io

import keep_outputs
import nbformat
import numpy as np
import pytest
from PIL import Image


def png(size: int = 64) -> str:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (size, size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def notebook(*sources: str) -> dict:
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])


def ran(*sources: str) -> dict:
    content = notebook(*sources)
    for count, cell in enumerate(content.cells, start=5):
        cell.execution_count = count
    return content


def test_outputs_come_over_without_widgets_and_with_small_pictures():
    executed = ran("a", "b")
    picture, view = png(), {keep_outputs.WIDGET: {"model_id": "x"}, "text/plain": "interactive()"}
    executed.cells[0].outputs = [nbformat.v4.new_output("display_data", {"image/png": picture})]
    executed.cells[1].outputs = [
        nbformat.v4.new_output("display_data", view),
        nbformat.v4.new_output("stream", text="seen"),
    ]
    merged = keep_outputs.merge(executed, notebook("a", "b"))
    small = merged["cells"][0]["outputs"][0]["data"]["image/png"]
    assert len(small) < len(picture)
    image = Image.open(io.BytesIO(base64.b64decode(small)))
    assert image.size == (64, 64) and len(image.convert("RGB").getcolors(64 * 64)) <= keep_outputs.COLOURS[-1]
    assert [output["output_type"] for output in merged["cells"][1]["outputs"]] == ["stream"]
    assert [cell["execution_count"] for cell in merged["cells"]] == [1, 2]


def test_a_cell_that_papermill_injected_is_left_out():
    executed = ran("a", "injected", "b")
    executed.cells[1].metadata["tags"] = [keep_outputs.INJECTED]
    assert len(keep_outputs.merge(executed, notebook("a", "b"))["cells"]) == 2


@pytest.mark.parametrize("spoil", ["source", "count", "error"])
def test_an_executed_notebook_that_does_not_belong_is_refused(spoil):
    executed = ran("a")
    if spoil == "source":
        executed.cells[0].source = "old"
    elif spoil == "count":
        executed.cells[0].execution_count = None
    else:
        executed.cells[0].outputs = [nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])]
    with pytest.raises(SystemExit, match="error: "):
        keep_outputs.merge(executed, notebook("a"))


def test_a_picture_that_moves_stays_as_it_is():
    frames = [Image.fromarray(np.full((8, 8, 3), shade, dtype=np.uint8)) for shade in (0, 120, 240)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "PNG", save_all=True, append_images=frames[1:], duration=100, loop=0)
    moving = base64.b64encode(buffer.getvalue()).decode()
    assert keep_outputs.small_png(moving) == moving


def test_a_map_of_colours_is_not_banded():
    shades = np.linspace(0, 255, 64, dtype=np.uint8)
    image = np.stack(np.broadcast_arrays(shades[:, None], shades[None, :], np.uint8(90)), axis=-1)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=0)
    small = keep_outputs.small_png(base64.b64encode(buffer.getvalue()).decode())
    after = np.asarray(Image.open(io.BytesIO(base64.b64decode(small))).convert("RGB"), dtype=float)
    assert np.abs(after - image).mean() < 6  # 48 colours: more than 12
