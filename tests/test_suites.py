"""The published formats, each read from a small file made here: what is asked, of which text, and how it is scored."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from longctx.errors import MissingExtra, UsageError

long_qa = importlib.import_module("longctx.pipelines.long_qa")
scoring = importlib.import_module("longctx.pipelines.scoring")
chinese = importlib.import_module("longctx.pipelines.metrics.chinese")

LEVAL = {"input": "A long text.", "evaluation": "exam"}
LONGBENCH = {"context": "A long text.", "input": "Who?", "answers": ["Odette", "Mara"], "_id": "a"}
V2 = {"_id": "a", "length": "short", "question": "Who?", "context": "A long text.", "answer": "B"}
V2 |= {"choice_A": "Mara", "choice_B": "Odette", "choice_C": "Tobin", "choice_D": "nobody"}
SQUALITY = {"question": "Who?", "number": 2, "references": ["Odette.", "It is Odette."]}
SQUALITY_OFFICIAL = {
    "metadata": {"passage_id": "s"},
    "document": "A long text.",
    "questions": [
        {"question_text": "Who?", "question_number": 2, "responses": [{"response_text": t} for t in ("Odette.", "It.")]}
    ],
}
QMSUM = {"id": "m", "transcript": "A: so.\nB: yes.", "general": [{"query": "What?", "answer": "All."}]}
QMSUM |= {"specific": [{"query": "Who?", "answer": "Odette.", "relevant_turns": [[0, 1]]}]}
QMSUM_OFFICIAL = {
    "meeting_transcripts": [{"speaker": "A", "content": "so."}, {"speaker": "B", "content": "yes."}],
    "general_query_list": [{"query": "What?", "answer": "All."}],
    "specific_query_list": [{"query": "Who?", "answer": "Odette.", "relevant_text_span": [["0", "1"]]}],
}
LOOGLE = {"title": "t", "input": "A long text.", "qa_pairs": [{"Q": "Who?", "A": "Odette", "S": "A long text."}]}
LINES = {"num_lines": 2, "expected_number": 423, "prompt": "Begin:\n\nline a: <7>\nline b: <423>\n\nTell me b. "}
KEYS = {"ordered_kv_records": [["k1", "v1"], ["k2", "v2"]], "key": "k2", "value": "v2"}
ALTERED = {
    "question": "when?",
    "original_answer": "2018",
    "altered_answer": "2012",
    "title": "T",
    "passage": "In 2012.",
}
PROMPTS = {
    "hotpotqa": "Answer.\n\n{context}\n\nAnswer the question.\n\nQuestion: {input}\nAnswer:",
    "trec": "Name the type.\n\n{context}\n{input}\nType:",
    "gov_report": "Report: {context}\n\nSummarise it.",
    "lsht": "请判断类别。\n\n{context}\n{input}",
    "vcsum": "写一段总结。\n会议记录：\n{context}\n\n会议总结：",
    "dureader": "请回答问题。\n\n文章：{context}\n\n问题：{input}\n回答：",
    "multifieldqa_zh": "阅读文字。\n\n{context}\n\n问题：{input}\n回答：",
    "passage_retrieval_zh": "是哪一段。\n\n{context}\n\n{input}\n\n答案是：",
}


def read(folder: Path, suite: str, *rows: dict[str, Any], name: str = "rows.jsonl", **tables: Any) -> list[Any]:
    """The cases of a suite whose folder holds ``rows``, and each of ``tables`` as a JSON file."""
    own = folder / suite
    own.mkdir(exist_ok=True)
    (own / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for table, value in tables.items():
        (own / f"{table}.json").write_text(json.dumps(value), encoding="utf-8")
    return list(long_qa.read_cases(suite, folder))


def only(found: list[Any]) -> tuple[Any, Any]:
    """The one document and its one question."""
    (case,) = found
    (question,) = case.questions
    return case, question


def measured(question: Any) -> list[str]:
    return [measure.name for measure in question.measures]


def test_every_suite_has_its_file_and_names_metrics_there_are(tmp_path: Path) -> None:
    assert long_qa.suites() == sorted(EXAMPLES)
    for suite, (rows, tables) in EXAMPLES.items():
        for case in read(tmp_path, suite, *rows, **tables):
            assert case.text.strip() and case.questions
            for question in case.questions:
                assert question.prompt.strip() and question.query.strip() and question.max_new_tokens > 0
                assert all(measure.metric in scoring.METRICS and measure.references for measure in question.measures)
                best = scoring.scores(question, RIGHT[suite])
                assert next(iter(best.values())) == pytest.approx(1.0), (suite, best)
                assert next(iter(scoring.scores(question, "umbrella 99999").values())) == 0.0, suite


@pytest.mark.parametrize(
    ("file", "asked", "output", "metrics", "told"),
    [
        ("quality", "Who?\n(A) Mara\n(B) Odette", "(B) Odette", ["exam_option"], "only the letter"),
        ("coursera", "Who?\nA. Mara\nB. Odette", "AB", ["exam_options"], "One or several"),
        ("gsm100", "How many?", "18", ["exam_number"], "The answer is"),
        ("sci_fi", "Is it so?", "True [fact: False]", ["exam_loyalty"], "Is it so?"),
        ("topic_retrieval_longchat", "The first?", "Art", ["exam_words"], "The first?"),
    ],
)
def test_leval_exams_are_scored_by_the_rule_of_their_file(
    file: str, asked: str, output: str, metrics: list[str], told: str, tmp_path: Path
) -> None:
    row = {**LEVAL, "instructions": [asked], "outputs": [output]}
    case, question = only(read(tmp_path, "leval", row, name=f"{file}.jsonl"))
    assert (case.task, case.name, case.text) == (file, f"{file}-1", "A long text.")
    assert measured(question) == metrics and question.query == asked and told in question.prompt
    assert question.max_new_tokens == 512


def test_leval_tells_open_tasks_their_length_and_leaves_out_what_others_judge(tmp_path: Path) -> None:
    row = {"input": "A text.", "instructions": ["Who?"], "outputs": ["It was Odette."], "evaluation": "f1"}
    _, question = only(read(tmp_path, "leval", row, {**row, "evaluation": "human"}))
    assert "3 words" in question.prompt and measured(question)[0] == "token_f1"
    assert question.max_new_tokens == 512, "the answer's limit tells the length of the reference"
    with pytest.raises(UsageError, match="no question that leval can score"):
        read(tmp_path, "leval", {**row, "evaluation": "LLM"})


def test_longbench_asks_what_its_template_says_after_the_context(tmp_path: Path) -> None:
    row = {**LONGBENCH, "dataset": "hotpotqa"}
    _, question = only(read(tmp_path, "longbench", row, dataset2prompt=PROMPTS))
    assert question.prompt == "Answer the question.\n\nQuestion: Who?\nAnswer:" and question.query == "Who?"
    assert question.measures[0].references == ("Odette", "Mara") and question.max_new_tokens == 32


def test_longbench_few_shot_tasks_are_told_before_and_scored_on_one_line(tmp_path: Path) -> None:
    row = {**LONGBENCH, "dataset": "trec", "answers": ["Date"], "all_classes": ["Date", "Place"]}
    _, question = only(read(tmp_path, "longbench", row, prompts=PROMPTS))
    assert question.prompt == "Name the type.\n\n\nWho?\nType:"
    assert scoring.scores(question, "Date\nQuestion: Where?\nType: Place") == {"classification": 1.0}


def test_longbench_summaries_have_no_input_and_their_own_rouge(tmp_path: Path) -> None:
    row = {**LONGBENCH, "dataset": "gov_report", "input": ""}
    _, question = only(read(tmp_path, "longbench", row, prompts=PROMPTS))
    assert question.query == question.prompt == "Summarise it." and measured(question) == ["longbench_rouge_l"]


@pytest.mark.parametrize(
    ("task", "metric", "longest", "prompt"),
    [
        ("multifieldqa_zh", "chinese_f1", 64, "问题：Who?\n回答："),
        ("dureader", "chinese_rouge_l", 128, "问题：Who?\n回答："),
        ("vcsum", "chinese_rouge_l", 512, "写一段总结。\n会议记录：\n\n\n\n会议总结："),  # nothing of it is said again
        ("lsht", "classification", 64, "请判断类别。\n\n\nWho?"),
        ("passage_retrieval_zh", "paragraph", 32, "Who?\n\n答案是："),
    ],
)
def test_longbench_has_its_chinese_tasks(
    task: str, metric: str, longest: int, prompt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chinese, "find_spec", lambda name: "there")
    row = {**LONGBENCH, "dataset": task, "answers": ["军事"], "all_classes": ["军事", "体育"]}
    _, question = only(read(tmp_path, "longbench", row, prompts=PROMPTS))
    assert (measured(question), question.max_new_tokens, question.prompt) == ([metric], longest, prompt)
    assert question.first_line == (task == "lsht") and question.measures[0].references == ("军事",)
    if task == "lsht":
        assert scoring.scores(question, "军事\n类别：体育") == {"classification": 1.0}


def test_what_cannot_be_scored_is_said_before_anything_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chinese, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="jieba"):
        read(tmp_path, "longbench", {**LONGBENCH, "dataset": "dureader"}, prompts=PROMPTS)
    assert read(tmp_path, "longbench", {**LONGBENCH, "dataset": "lsht", "all_classes": ["Mara"]}, prompts=PROMPTS)


def test_longbench_v2_reads_a_list_too_and_wants_the_published_words(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text(json.dumps([V2]), encoding="utf-8")
    case, question = only(long_qa.read_cases("longbench_v2", tmp_path))
    assert case.task == "short" and "(B) Odette" in question.query and "(insert answer here)" in question.prompt
    assert scoring.scores(question, "The correct answer is (B)") == {"option": 1.0, "lone_option": 1.0}
    assert scoring.scores(question, "B, Odette") == {"option": 0.0, "lone_option": 1.0}


@pytest.mark.parametrize(
    "row",
    [{"passage_id": "s", "document": "A long text.", "questions": [SQUALITY]}, SQUALITY_OFFICIAL],
    ids=["plain", "published"],
)
def test_squality_takes_the_best_of_its_references(row: dict[str, Any], tmp_path: Path) -> None:
    case, question = only(read(tmp_path, "squality", row))
    assert (case.name, question.id) == ("s", "2") and len(question.measures[0].references) == 2
    assert scoring.scores(question, "Odette.")["rouge_l"] == 1.0


@pytest.mark.parametrize("row", [QMSUM, QMSUM_OFFICIAL], ids=["plain", "published"])
def test_qmsum_meetings_are_one_turn_a_line(row: dict[str, Any], tmp_path: Path) -> None:
    (case,) = read(tmp_path, "qmsum", row)
    assert case.text == "A: so.\nB: yes." and [q.id for q in case.questions] == ["general-0", "specific-0"]


def test_loogle_pairs_may_be_text(tmp_path: Path) -> None:
    as_text = {**LOOGLE, "qa_pairs": str(LOOGLE["qa_pairs"])}
    assert read(tmp_path, "loogle", as_text) == read(tmp_path, "loogle", LOOGLE)
    with pytest.raises(UsageError, match="'qa_pairs' that are no list"):
        read(tmp_path, "loogle", {**LOOGLE, "qa_pairs": "none at all"})


def test_books_are_found_beside_the_folder_of_questions(tmp_path: Path) -> None:
    row = {"document_id": "b", "book_file": "books/b.txt", "qas": [{"question": "Who?", "answers": ["Odette"]}]}
    with pytest.raises(UsageError, match=r"row 1 names the book 'books/b.txt'"):
        read(tmp_path, "book_qa", row)
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "b.txt").write_text("A long text.", encoding="utf-8")
    assert only(read(tmp_path, "book_qa", row))[0].text == "A long text."


@pytest.mark.parametrize("name", ["../../secret.txt", "books/../../../secret.txt", "{}/secret.txt"])
def test_a_book_is_never_a_file_outside_the_data(name: str, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("Not for the model.", encoding="utf-8")
    folder = tmp_path / "given" / "data"
    folder.mkdir(parents=True)
    name = name.format(tmp_path)
    row = {"document_id": "b", "book_file": name, "qas": [{"question": "Who?", "answers": ["Odette"]}]}
    with pytest.raises(UsageError, match="row 1 names the book .*, which leads out of the data"):
        read(folder, "book_qa", row)


def test_lines_keep_the_record_as_text_and_ask_the_rest(tmp_path: Path) -> None:
    case, question = only(read(tmp_path, "longchat_lines", LINES))
    assert case.text == "Begin:\n\nline a: <7>\nline b: <423>" and question.prompt == "Tell me b."


def test_keys_and_values_are_one_json_object_in_the_given_order(tmp_path: Path) -> None:
    case, question = only(read(tmp_path, "kv_retrieval", KEYS))
    assert list(json.loads(case.text).items()) == [("k1", "v1"), ("k2", "v2")] and '"k2"' in question.prompt


def test_altered_numbers_stand_in_one_document_and_the_old_ones_are_counted(tmp_path: Path) -> None:
    (case,) = read(tmp_path, "altered_numeric_qa", ALTERED, {**ALTERED, "passage": "In 1912."})
    assert case.text == "T\nIn 2012.\n\nT\nIn 1912." and len(case.questions) == 2
    assert scoring.scores(case.questions[0], "2018, no 2012") == {"whole_number": 1.0, "from_memory": 1.0}
    assert scoring.scores(case.questions[0], "In 2012.") == {"whole_number": 1.0, "from_memory": 0.0}


def test_freeform_rows_share_a_document_or_are_passages_of_one(tmp_path: Path) -> None:
    own = [{"document": "One.", "question": f"{n}?", "answer": "x"} for n in range(2)]
    passages = [{"title": "T", "passage": "Two.", "question": "a?", "answers": ["x", "y"]}]
    passages.append({"passage": "Three.", "question": "b?", "answer": 3})
    found = read(tmp_path, "freeform", *own, *passages)
    assert [(case.text, len(case.questions)) for case in found] == [("T\nTwo.\n\nThree.", 2), ("One.", 2)]
    assert found[0].questions[0].measures[0].references == ("x", "y")


@pytest.mark.parametrize(
    ("suite", "row", "said"),
    [
        ("leval", {**LEVAL, "instructions": ["a", "b"], "outputs": ["c"]}, "row 1 has 2 instructions and 1 outputs"),
        ("leval", {**LEVAL, "instructions": ["a"], "outputs": [" "]}, "empty output 0"),
        ("longbench", {**LONGBENCH, "dataset": "trivia"}, "task 'trivia', which has no metric"),
        ("longbench", {**LONGBENCH, "dataset": "qasper"}, "no template with {context}"),
        ("longbench", {**LONGBENCH, "dataset": "hotpotqa", "answers": []}, "has no answers"),
        ("longbench_v2", {**V2, "answer": "E"}, "answer 'E', which is none of ABCD"),
        ("longbench_v2", {**V2, "choice_C": None}, "has no text in 'choice_C'"),
        ("squality", {"passage_id": "s", "document": "t", "questions": ["Who?"]}, "holds str where an object"),
        ("kv_retrieval", {**KEYS, "ordered_kv_records": [["k1"]]}, "no pair of key and value"),
        ("longchat_lines", {**LINES, "prompt": "Tell me b."}, "without an empty line"),
        ("longchat_lines", {**LINES, "expected_number": 1.5}, "no whole number"),
        ("loogle", {**LOOGLE, "input": " "}, "the question '0' of the document 'rows-1' without text"),
        (
            "freeform",
            {"document": "A text.", "question": " ", "answer": "x"},
            "'1' of the document 'rows-1' without text",
        ),
        ("qmsum", {"id": "m", "general": [], "specific": []}, "no list in 'meeting_transcripts'|no question"),
        ("passkey", {"input": "text"}, "has no text in 'target'"),
    ],
)
def test_rows_of_another_format_are_named_with_what_they_lack(
    suite: str, row: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=said):
        read(tmp_path, suite, row, prompts=PROMPTS)


def test_files_that_are_no_rows_are_named(tmp_path: Path) -> None:
    (tmp_path / "passkey").mkdir()
    with pytest.raises(UsageError, match="holds no rows"):
        long_qa.read_cases("passkey", tmp_path)
    (tmp_path / "passkey").rmdir()
    (tmp_path / "rows.jsonl").write_text('{"input": "a", "target": 1}\n{"input": \n')
    with pytest.raises(UsageError, match="row 2 is not JSON"):
        long_qa.read_cases("passkey", tmp_path)
    (tmp_path / "rows.jsonl").write_text("[1]\n")
    with pytest.raises(UsageError, match="row 1 is not an object"):
        long_qa.read_cases("passkey", tmp_path)
    with pytest.raises(UsageError, match="put it beside the data"):
        read(tmp_path, "longbench", {**LONGBENCH, "dataset": "hotpotqa"})


def test_a_folder_of_other_suites_is_not_searched_for_rows(tmp_path: Path) -> None:
    """A suite without a folder was looked for in the rows of all others, and theirs were said to be wrong."""
    read(tmp_path, "loogle", LOOGLE)
    with pytest.raises(
        UsageError, match=f"neither a folder {re.escape(str(tmp_path / 'passkey'))} nor rows of its own"
    ):
        long_qa.read_cases("passkey", tmp_path)
    deep = tmp_path / "given" / "passkey" / "part"
    deep.mkdir(parents=True)
    (deep / "rows.jsonl").write_text('{"input": "t 72498", "target": "72498"}\n', encoding="utf-8")
    for folder in (tmp_path / "given", tmp_path / "given" / "passkey", deep):
        assert only(list(long_qa.read_cases("passkey", folder)))[0].text == "t 72498"


def test_two_questions_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the question 'a' of the document 'a' twice"):
        read(tmp_path, "longbench_v2", V2, V2)


EXAMPLES: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "altered_numeric_qa": ([ALTERED], {}),
    "book_qa": ([{"document_id": "b", "text": "t", "qas": [{"question": "Who?", "answers": ["Odette"]}]}], {}),
    "freeform": ([{"document": "t", "question": "Who?", "answers": ["Odette"]}], {}),
    "kv_retrieval": ([KEYS], {}),
    "leval": ([{**LEVAL, "instructions": ["Who?"], "outputs": ["Odette"]}], {}),
    "longbench": ([{**LONGBENCH, "dataset": "hotpotqa"}], {"prompts": PROMPTS}),
    "longbench_v2": ([V2], {}),
    "longchat_lines": ([LINES], {}),
    "loogle": ([LOOGLE], {}),
    "passkey": ([{"input": "t 72498", "target": "72498"}], {}),
    "qmsum": ([{**QMSUM, "general": []}], {}),
    "squality": ([{"passage_id": "s", "document": "t", "questions": [SQUALITY]}], {}),
}
RIGHT = {name: "Odette" for name in EXAMPLES}
RIGHT |= {"altered_numeric_qa": "2012", "kv_retrieval": "It is V2.", "longbench_v2": "The correct answer is (B)"}
RIGHT |= {"longchat_lines": "<423>", "passkey": "72498."}
