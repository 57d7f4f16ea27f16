"""L-Eval (An et al. 2023): files of a task each, a line a document with lists of instructions and outputs.

Tasks judged by people or by another model have no metric here and are left out, as is codeU, whose rules of extraction
depend on a fixed list of phrases. Open tasks are told the length of the reference in words, as the benchmark does.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..cases import Case, Measure, Question, Row, rows

_LETTER = "Give only the letter of the right option, such as A or B."
_LETTERS = "One or several options are right. Give only their letters, such as A or AB."
# beginning of a file's name -> (metrics, what is asked besides, longest answer)
_EXAMS: dict[str, tuple[tuple[str, ...], str, int]] = {
    "coursera": (("exam_options",), _LETTERS, 32),
    "quality": (("exam_option",), _LETTER, 32),
    "tpo": (("exam_option",), _LETTER, 32),
    "gsm": (("exam_number",), 'End with "The answer is" and the number.', 512),
    "sci_fi": (("exam_loyalty", "exam_fact"), "", 64),
}
_OTHER_EXAM = (("exam_words",), "", 64)
_OPEN = {"f1": ("token_f1", "rouge_l"), "rouge": ("rouge_l", "rouge_1", "rouge_2")}
_MOST_NEW = 512


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
        metrics, besides, longest = next((v for k, v in _EXAMS.items() if task.startswith(k)), _OTHER_EXAM)
    else:
        length = len(output.split())
        metrics, besides = _OPEN[kind], f"Answer in about {length} words."
        longest = min(_MOST_NEW, 32 + 2 * length)
    prompt = f"{instruction.strip()}\n{besides}".strip()
    return Question(number, instruction, prompt, tuple(Measure(metric, (output,)) for metric in metrics), longest)
