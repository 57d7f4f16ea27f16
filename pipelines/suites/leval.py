"""L-Eval (An et al. 2023): files of a task each, a line a document with lists of instructions and outputs.

Tasks judged by people or by another model have no metric here and are left out, as is codeU, whose rules of extraction
depend on a fixed list of phrases. Open tasks are told the length of the reference in words, as the benchmark does. Of
sci_fi only the half that depends on the document has a metric: what is so in reality is asked without the document.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..cases import Case, Measure, Question, Row, rows

_LETTER = "Give only the letter of the right option, such as A or B."
_LETTERS = "One or several options are right. Give only their letters, such as A or AB."
# beginning of a file's name -> (metrics, what is asked besides)
_EXAMS: dict[str, tuple[tuple[str, ...], str]] = {
    "coursera": (("exam_options",), _LETTERS),
    "quality": (("exam_option",), _LETTER),
    "tpo": (("exam_option",), _LETTER),
    "gsm": (("exam_number",), 'End with "The answer is" and the number.'),
    "sci_fi": (("exam_loyalty",), ""),
}
_OTHER_EXAM = (("exam_words",), "")
_OPEN = {"f1": ("token_f1", "rouge_l"), "rouge": ("rouge_l", "rouge_1", "rouge_2")}
_MOST_NEW = 512  # as published, for every task


def cases(folder: Path) -> Iterator[Case]:
    for row in rows(folder):
        task = row.file.stem
        kind = row.text("evaluation")
        if (kind != "exam" and kind not in _OPEN) or task.startswith("codeU"):
            continue
        asked, wanted = row.items("instructions"), row.items("outputs")
        if len(asked) != len(wanted):
            raise row.wrong(f"has {len(asked)} instructions and {len(wanted)} outputs")
        questions = [
            _question(row, task, kind, str(number), str(instruction), str(output))
            for number, (instruction, output) in enumerate(zip(asked, wanted, strict=True))
        ]
        yield Case(task, f"{task}-{row.number}", row.text("input"), tuple(questions))


def _question(row: Row, task: str, kind: str, number: str, instruction: str, output: str) -> Question:
    if not output.strip():
        raise row.wrong(f"has an empty output {number}")
    if kind == "exam":
        metrics, besides = next((v for k, v in _EXAMS.items() if task.startswith(k)), _OTHER_EXAM)
    else:
        metrics, besides = _OPEN[kind], f"Answer in about {len(output.split())} words."
    prompt = f"{instruction.strip()}\n{besides}".strip()
    return Question(number, instruction, prompt, tuple(Measure(metric, (output,)) for metric in metrics), _MOST_NEW)
