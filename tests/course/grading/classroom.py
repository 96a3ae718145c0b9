"""A worked example: what a class hands in, made from the real notebooks. Only the book's own code is executed here.

`solved` is a notebook as a student saves it after solving every exercise: the source of the answer cells is the
lesson's reference solution, and their records come from `labkit`'s own judge and record. The others spoil it.
"""

import contextlib
import copy
import functools
import io
import json
import zipfile

import nbformat
import torch

from labkit.course.build import student_folder
from labkit.course.lessons import BEGIN, END, lesson_paths, read_lesson
from labkit.models.profiles import PROFILES
from labkit.models.shapes import shape_of
from labkit.page.exercises import judge, record_run
from labkit.page.records import PREFIX, cell_hash, make_record
from labkit.paths import data_folder
from labkit.training.record import read_record

TEXT = (
    "The gradient must travel through every frozen layer on its way down. What the nonlinear operations kept is needed "
    "there, frozen or not. The adapters add copies of their own inputs on top of that."
)
# Answers that need a lesson's other cells: the source that a student would type, and its value.
TYPED = {
    "q0_1": "answer = (3.44, 3.2)",
    "q0_3": "download_seconds = 275.3",
    "q1_2": "peak_gb = 9.2",
    "q1_3": "changes = dict(checkpointing=True, kbit_prepare=False)",
    "q2_3": "file_mb = 174.6",
    "q3_3": 'prediction = ("A", 6.07)',
    "q4_2": 'diagnoses = {"A": "stop", "B": "shifted", "C": "healthy", "D": "twice"}',
}
REAL_LOSSES = [point["loss"] for point in read_record(data_folder() / "measurements" / "sft_laptop").curve]
WRITTEN = ("q0_4", "q1_4", "q2_4", "q3_5", "q4_5")


@functools.cache
def typed(id):
    """The value of an answer that is not a function."""
    if id in WRITTEN:
        return f"{TEXT} ({id})"
    if id == "q1_2":
        from labkit.page.memory_figures import predict_choice
        from labkit.page.questions.q01 import PEAK_SETTING

        return predict_choice(PEAK_SETTING).peak_allocated_bytes / 1e9
    if id == "q3_4":
        from labkit.page.questions.q03_samples import pruned_weights
        from labkit.theory.normal_blocks import sample_levels

        pruned = pruned_weights()
        size = pruned.abs().amax(1, keepdim=True)
        fitted = sample_levels(pruned / size, (size**2).expand_as(pruned))
        for demanded in (-1.0, 0.0, 1.0):
            fitted[(fitted - demanded).abs().argmin()] = demanded
        return fitted.tolist()
    if id == "q4_3":
        from labkit.page.questions.q04 import peaks_gib

        return peaks_gib()["wanted"]
    if id == "q4_4":
        choice = {"learning_rate": 5e-3, "steps": 32, "batch": 2}
        return {"choice": choice, "heldout_loss": 3.1, "baseline": 3.3, "row_budget": 64}
    return eval(TYPED[id].partition("=")[2])


def solution_source(code):
    """A cell with its reference solution, as the solution notebook has it."""
    return "\n".join(line for line in code.split("\n") if line.strip() not in (BEGIN, END))


@functools.cache
def functions(lesson):
    """Name to function of the lesson's reference solutions."""
    space = {"shape_of": shape_of, "torch": torch}
    for cell in read_lesson(next(path for path in lesson_paths() if path.stem == lesson)).cells:
        if BEGIN in cell.code and "\ndef " in f"\n{cell.code}":
            code = "\n".join(line for line in solution_source(cell.code).split("\n") if not line.startswith("check("))
            exec(code, space)
    return space


@functools.cache
def solved_text(lesson, lang):
    """The JSON text of the lesson's notebook, solved, run from top to bottom, and saved."""
    cells = {f"{lesson[:2]}-{c.number:03d}": c for c in read_lesson(path_of(lesson)).cells}
    notebook = nbformat.read(student_folder(lang) / f"{lesson}.ipynb", as_version=4)
    for count, cell in enumerate((c for c in notebook.cells if c.cell_type == "code"), start=1):
        cell.execution_count = count
        cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text="seen\n")]
        ids = [line.split('"')[1] for line in cell.source.split("\n") if line.startswith("check(")]
        if ids:
            cell.source = solution_source(cells[cell.id].code)
            cell.outputs.append(printed(ids[0], value_of(ids[0], cell.source, lesson), cell.source))
        if "record_run(" in cell.source:
            cell.outputs[0].text += printed_run()
    return nbformat.writes(notebook)


def path_of(lesson):
    """The lesson's source."""
    return next(path for path in lesson_paths() if path.stem == lesson)


def value_of(id, source, lesson):
    """What the last line of an answer cell hands to check."""
    argument = source.split(f'check("{id}", ')[1].split("\n")[0].removesuffix(")")
    return functions(lesson)[argument] if argument in functions(lesson) else typed(id)


def printed(id, value, source, **changes):
    """The output that `check` leaves under a cell with this source."""
    state, message, kept = judge(id, value)
    record = json.loads(make_record(id, state, kept).line().removeprefix(PREFIX))
    said = message if state in ("wrong", "error") else None
    record |= {
        "cell_sha256": cell_hash(source),
        "seconds": 0.25,
        "said": said,
        "gpu": None,
        "peak_bytes": None,
    } | changes
    line = PREFIX + json.dumps(record, ensure_ascii=False, sort_keys=True)
    return nbformat.v4.new_output(
        "display_data", data={"text/plain": f"[{id}] {message}\n{line}", "text/html": "<b></b>"}
    )


def printed_run():
    """What lesson 04's training prints for the grader: the stored curve of a real run, as long as `tiny` trains."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        record_run(
            "r4_1", REAL_LOSSES[: PROFILES["tiny"].steps], seconds=9.0, peak_memory={"process_peak_rss_bytes": 2**30}
        )
    return printed.getvalue()


def solved(lesson="00_start_here", lang="en"):
    """A fresh solved notebook as plain data."""
    notebook = json.loads(solved_text(lesson, lang))
    for cell in notebook["cells"]:
        cell["source"] = source_of(cell)
    return notebook


def cell_of(notebook, id):
    """The answer cell of question ``id``."""
    return next(c for c in notebook["cells"] if c["cell_type"] == "code" and f'check("{id}"' in source_of(c))


def source_of(cell):
    """A cell's source as one string."""
    return "".join(cell["source"])


def code_cells(notebook):
    """The code cells."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def record_of(notebook, id):
    """The record under the answer cell of ``id``, and a function that puts a changed one back."""
    output = cell_of(notebook, id)["outputs"][-1]
    lines = "".join(output["data"]["text/plain"]).split("\n")

    def put(**changes):
        output["data"]["text/plain"] = "\n".join(
            [*lines[:-1], PREFIX + json.dumps(record | changes, ensure_ascii=False)]
        )

    record = json.loads(lines[-1].removeprefix(PREFIX))
    return record, put


def answer(notebook, id, source, value, **changes):
    """Put another answer into the cell of ``id``, and run it."""
    cell = cell_of(notebook, id)
    cell["source"] = source + f'\ncheck("{id}", mine)'
    cell["outputs"] = [printed(id, value, cell["source"], **changes)]


def as_colab(notebook):
    """The notebook after a round trip through Colab: nbformat 4.0, no ids, metadata of its own, widgets without state.

    The level "state" is what Colab leaves out: nbconvert and GitHub's viewer ask for it and stop.
    """
    notebook = copy.deepcopy(notebook)
    notebook["nbformat_minor"] = 0
    notebook["metadata"] = {"colab": {"provenance": []}, "kernelspec": {"name": "python3", "display_name": "Python 3"}}
    html = {"model_module": "@jupyter-widgets/controls", "model_name": "HTMLModel", "state": {"value": "moved"}}
    notebook["metadata"]["widgets"] = {"application/vnd.jupyter.widget-state+json": {"abc": html}}
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "abc"}, "text/plain": ["HTML(value='moved')"]}
    code_cells(notebook)[0]["outputs"].append({"output_type": "display_data", "metadata": {}, "data": view})
    for place, cell in enumerate(notebook["cells"]):
        cell.pop("id", None)
        cell["metadata"] = {"id": f"x{place}", "colab": {"base_uri": "https://localhost:8080/"}}
        cell["source"] = source_of(cell).splitlines(keepends=True)
    return notebook


def save(folder, student, notebook, name="00_start_here"):
    """Write a notebook (data, text or bytes) where that student hands it in."""
    path = folder / student / f"{name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = (
        notebook
        if isinstance(notebook, bytes)
        else (notebook if isinstance(notebook, str) else json.dumps(notebook)).encode()
    )
    path.write_bytes(raw)
    return path


def save_honest_and_forged(folder):
    """Two students with lesson 00's answers alone: the function of ``forged`` does not bear out its record."""
    honest = solved()
    honest["cells"] = [cell for cell in honest["cells"] if "check(" in source_of(cell)]
    forged = copy.deepcopy(honest)
    cell = cell_of(forged, "q0_2")
    cell["source"] = cell["source"].replace("+ 7) // 8", ") // 8")
    record_of(forged, "q0_2")[1](cell_sha256=cell_hash(cell["source"]))
    save(folder, "honest", honest)
    save(folder, "forged", forged)


def packed(members):
    """The bytes of a zip; a member is (name or ZipInfo, bytes)."""
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return raw.getvalue()
