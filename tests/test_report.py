"""The report: the verdict by the recipe's bars, one document, one page that is safe to open."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fabricated_run import HOSTILE, SUMMARIES, bench, candidate, evaluation, fabricated_run, proven, result_rows, scores
from hypothesis import given
from hypothesis import strategies as st

from edgedistill.commands.report import print_report, show_report
from edgedistill.errors import EdgeDistillError
from edgedistill.recipe import AcceptSettings, BenchSettings
from edgedistill.report.charts import latency_chart, loss_chart, rejection_chart
from edgedistill.report.judge import Judgement, judge
from edgedistill.report.page import losses, page, write_report
from edgedistill.report.summary import document, training_points
from edgedistill.report.wording import one_line, visible
from edgedistill.results import RESULTS
from edgedistill.store import Store

ACCEPT = AcceptSettings(valid=0.95, agreement=0.8, exact_of_teacher=0.9, must_pass=False, speedup=5.0)
BENCH = BenchSettings(target_ms=(100.0, 500.0), percentile=95)
TARGET = {"target_ms": [100.0, 500.0], "percentile": 95, "metric": "e2e"}


def student(quant: str, size: int, exact: float = 0.9, p50: float = 200.0, **changes: Any) -> dict[str, Any]:
    e2e = {"p50": p50, "p90": p50 * 1.1, "p95": p50 * 1.2, "p99": p50 * 1.3}
    one = candidate(f"student {quant}", "student", quant, size, exact)
    return {**one, **proven(e2e), "latency_ms": {"ttft": e2e, "e2e": e2e}, **changes}


def teacher(exact: float | None = 0.92, p50: float = 2000.0, n: int = 150) -> dict[str, Any]:
    e2e = {"p50": p50, "p90": p50, "p95": p50, "p99": p50}
    one = candidate("teacher", "teacher", "Q4_K_M", 1_000_000_000, 0.92, 1.0)
    return {**one, "eval": scores(exact, agreement=1.0, n=n), "latency_ms": {"ttft": e2e, "e2e": e2e}}


def judged(*candidates: dict[str, Any], accept: AcceptSettings = ACCEPT) -> Judgement:
    return judge(candidates, result_rows(list(candidates)), accept, BENCH)


def test_the_smallest_that_passes_is_chosen() -> None:
    found = judged(teacher(), student("Q8_0", 145), student("Q6_K", 120), student("Q4_K_M", 105))
    assert (found.verdict, found.chosen) == ("accepted", "student Q4_K_M")
    assert len(found.reasons) == 6
    assert "The right answer on 90 % of 150 rows" in found.reasons[3]
    assert "90 % of the teacher's 92 %, row by row: shown (p < 0.001)" in found.reasons[3]


def test_a_smaller_one_below_a_bar_is_passed_over() -> None:
    found = judged(teacher(), student("Q8_0", 145), student("Q4_K_M", 105, exact=0.7))
    assert (found.verdict, found.chosen) == ("accepted", "student Q8_0")


def test_one_that_passes_where_a_larger_one_does_not_may_be_luck() -> None:
    found = judged(teacher(), student("Q8_0", 145, exact=0.83), student("Q4_K_M", 105))
    assert (found.verdict, found.chosen) == ("inconclusive", None)
    assert found.reasons[0].startswith("student Q4_K_M passes every bar, but the scores of a larger one do not")
    slow = student("Q8_0", 145, p50=450.0)
    assert judged(teacher(), slow, student("Q4_K_M", 105)).chosen == "student Q4_K_M"  # its scores do pass


@pytest.mark.parametrize(
    ("changes", "accept", "bar", "words"),
    [
        ({"eval": scores(0.9, valid=0.89)}, {}, "valid", "Valid answers on 89 % of 150 rows"),
        ({"eval": scores(0.9, agreement=0.7)}, {}, "agreement", "70 % of 150 rows"),
        ({"eval": scores(0.72)}, {}, "exact", "row by row: shown to be missed (p < 0.001)"),
        ({"eval": scores(0.9)}, {"score": 0.96}, "score", "the bar is 96 %: shown to be missed (p = 0.0"),
        ({"p50": 450.0}, {"speedup": 0.0}, "latency", "p95 end to end is 540 ms"),
        ({"p50": 410.0}, {}, "speedup", "4.9 times as fast as the teacher at the median (410 ms against 2000 ms)"),
        ({}, {"must_pass": True}, "must_pass", "4 of 6 must-pass cases are right; wrong: “Unlock.”"),
        ({}, {"max_bytes": 140_000_000}, "size", "145 MB on disk; the bar is 140 MB."),
        ({"peak_memory_bytes": 3 * 10**8}, {"max_memory_bytes": 2 * 10**8}, "memory", "300 MB of memory at the peak"),
    ],
)
def test_each_missed_bar_rejects_and_is_quoted(
    changes: dict[str, Any], accept: dict[str, Any], bar: str, words: str
) -> None:
    found = judged(teacher(), student("Q8_0", 145_000_000, **changes), accept=ACCEPT.model_copy(update=accept))
    assert (found.verdict, found.chosen, found.best) == ("rejected", None, "student Q8_0")
    assert [missed.name for missed in found.bars["student Q8_0"] if not missed.passed] == [bar]
    assert len(found.reasons) == 2
    assert words in found.reasons[1]


def test_a_score_near_its_bar_is_open_and_says_how_many_rows_would_decide() -> None:
    found = judged(teacher(), student("Q8_0", 145, exact=0.85))
    assert (found.verdict, found.chosen) == ("inconclusive", None)
    (bar,) = (one for one in found.bars["student Q8_0"] if one.passed is None)
    assert bar.name == "exact"
    assert bar.p is not None
    assert 0.05 < bar.p < 0.5
    assert bar.more is not None
    assert f"about {bar.more:,} more rows like these would decide." in found.reasons[1]


def test_a_few_eval_rows_prove_nothing_even_if_all_are_right() -> None:
    found = judged(teacher(1.0, n=20), student("Q8_0", 145, eval=scores(1.0, agreement=1.0, n=20)))
    assert (found.verdict, found.chosen) == ("inconclusive", None)
    assert [bar.name for bar in found.bars["student Q8_0"] if bar.passed is None] == ["valid", "exact"]


def test_what_was_not_measured_is_inconclusive() -> None:
    found = judged(teacher(), student("Q8_0", 145, latency_ms=None))
    assert (found.verdict, found.chosen) == ("inconclusive", None)
    assert "Latency: not measured." in found.reasons
    assert judge([], [], ACCEPT, BENCH).verdict == "inconclusive"
    without_rows = judge([teacher(), student("Q8_0", 145)], [], ACCEPT, BENCH)
    assert without_rows.verdict == "inconclusive"


def test_without_right_answers_the_teacher_is_the_measure() -> None:
    found = judged(teacher(None), student("Q8_0", 145, eval=scores(None)))
    assert found.verdict == "accepted"
    assert "exact" not in {bar.name for bar in found.bars["student Q8_0"]}


@pytest.mark.parametrize(
    ("whole", "ratio", "verdict", "passed"),
    [
        (0.0, 0.9, "accepted", True),
        (0.3, 0.9, "accepted", True),
        (1.0, 0.9, "inconclusive", None),
        (1.0, 0.99, "rejected", False),
    ],
)
def test_a_short_prompt_must_be_shown_to_lose_nothing(
    whole: float, ratio: float, verdict: str, passed: bool | None
) -> None:
    own = student("F16", 270, exact=0.9)
    prompted = {**own, "name": "student F16, teacher's prompt", "eval": scores(whole)}
    people = [teacher(), student("Q8_0", 145)]
    accept = ACCEPT.model_copy(update={"of_whole_prompt": ratio})
    names = (own["name"], prompted["name"])
    found = judge(people, result_rows([*people, own, prompted]), accept, BENCH, names)
    (bar,) = [one for one in found.bars["student Q8_0"] if one.name == "own_prompt"]
    assert (found.verdict, bar.passed) == (verdict, passed)
    assert ("with the student's own prompt" if whole else "nothing to lose") in bar.sentence
    assert f"of the {100 * whole:.0f} %" in bar.sentence or not whole
    unasked = judge(
        people, result_rows([*people, own, prompted]), ACCEPT.model_copy(update={"of_whole_prompt": 0.0}), BENCH, names
    )
    assert unasked.verdict == "accepted"


def test_the_document_joins_scores_and_times(tmp_path: Path) -> None:
    found = document(*fabricated_run(tmp_path))
    assert (found["verdict"], found["chosen"]) == ("accepted", "student Q4_K_M")
    by_name = {one["name"]: one for one in found["candidates"]}
    assert by_name["student Q4_K_M"]["latency_ms"]["e2e"]["p50"] == 180.0
    assert set(by_name["teacher"]["latency_ms"]["ttft"]) == {"p50", "p90", "p95", "p99"}
    assert by_name["untrained student"]["latency_ms"] is None
    assert {stage["name"] for stage in found["stages"]} == set(SUMMARIES)
    assert found["models"]["student"]["imported_from_quant"] == "Q4_1"
    assert found["models"]["teacher"]["licence_name"] == "Apache License 2.0"
    json.dumps(found, allow_nan=False)


def test_the_sixteen_bit_student_is_no_package_unless_asked_for(tmp_path: Path) -> None:
    recipe, run = fabricated_run(tmp_path)
    data = bench()
    data["candidates"].append({**data["candidates"][1], "name": "student F16", "quant": "F16", "size_bytes": 1})
    (run.folder("bench") / "bench.json").write_text(json.dumps(data), encoding="utf-8")
    assert "student F16" not in document(recipe, run)["bars"]


@pytest.mark.parametrize("stages", [0, 3, 4, 7])
def test_a_run_under_way_is_shown_as_far_as_it_is(tmp_path: Path, stages: int) -> None:
    import shutil

    recipe, run = fabricated_run(tmp_path)
    for stage in list(SUMMARIES)[stages:]:
        shutil.rmtree(run.folder(stage))
    found = document(recipe, run)
    assert found["verdict"] == "inconclusive"
    assert len(found["stages"]) == stages
    assert "Inconclusive" in page(found, training_points(run))


def test_what_got_no_answer_and_what_is_to_be_known_of_the_answers_is_shown(tmp_path: Path) -> None:
    recipe, run = fabricated_run(tmp_path)
    taught = {**SUMMARIES["teach"], "rows": 2446, "failed": 7, "warnings": ["soft targets carry <rounding>"]}
    run.finish("teach", "key", taught, 1.0)
    learned = {**SUMMARIES["train"], "rows_by_text": 5, "warnings": ["5 of 90 rows were learned by their text alone"]}
    run.finish("train", "key", learned, 1.0)
    found = document(recipe, run)
    assert (found["data"]["failed"], found["warnings"]) == (7, [*taught["warnings"], *learned["warnings"]])
    assert (found["training"]["rows_by_text"], "warnings" in found["training"]) == (5, False)
    html = page(found, training_points(run))
    for words in (
        "answers to them",
        "got no answer</td><td></td><td>−7",
        "soft targets carry &lt;rounding&gt;.",
        "5 of 90 rows",
    ):
        assert words in html, words


def test_several_teachers_stand_under_their_names_and_a_size_may_be_unknown(tmp_path: Path) -> None:
    recipe, run = fabricated_run(tmp_path)
    first = SUMMARIES["teach"]["teacher"]
    server = {
        "name": "big",
        "sha256": "aa" * 32,
        "source": "server:https://a.example/v1",
        "licence": "mit",
        "quant": None,
    }
    run.finish("teach", "key", {"rows": 1230, "teachers": [server, first]}, 1.0)
    scored, times = evaluation(), bench()
    for rows in (scored["candidates"], times["candidates"]):
        rows.append({**rows[0], "name": "teacher 2"})
        rows[0] |= {"quant": None, "size_bytes": None}
    (run.folder("evaluate") / "evaluation.json").write_text(json.dumps(scored), encoding="utf-8")
    (run.folder("bench") / "bench.json").write_text(json.dumps(times), encoding="utf-8")
    found = document(recipe, run)
    assert [found["models"][role]["name"] for role in ("teacher", "teacher 2")] == ["big", first["name"]]
    assert [one["latency_ms"] is not None for one in found["candidates"] if one["kind"] == "teacher"] == [True, True]
    html = page(found, training_points(run))
    assert "None" not in html
    assert "teacher 2 Q4_K_M" in html
    assert "<td>teacher</td><td>–</td>" in html


def test_a_run_without_edge_cases_has_none_in_its_report(tmp_path: Path) -> None:
    recipe, run = fabricated_run(tmp_path)
    data = evaluation()
    for one in data["candidates"]:
        del one["edge"]
    (run.folder("evaluate") / "evaluation.json").write_text(json.dumps({**data, "files": {}}), encoding="utf-8")
    found = document(recipe, run)
    assert found["candidates"][0]["edge"] is None
    assert "Edge cases" not in page(found, [])
    print_report(found)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    recipe, run = fabricated_run(tmp_path)
    (run.folder("bench") / "bench.json").write_text('{"cand', encoding="utf-8")
    with pytest.raises(EdgeDistillError, match=r"bench\.json: not JSON"):
        document(recipe, run)


def test_a_run_of_an_earlier_version_says_what_to_redo(tmp_path: Path) -> None:
    recipe, run = fabricated_run(tmp_path)
    (run.folder("evaluate") / RESULTS).unlink()
    with Store(run.folder("evaluate") / RESULTS):
        pass  # answers, and no scores
    with pytest.raises(EdgeDistillError, match="evaluated by an earlier version") as caught:
        document(recipe, run)
    assert "--from evaluate" in caught.value.hint


class Tags(HTMLParser):
    """What a browser would make of the page: its tags, attributes and text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_one_file_without_script_or_outside_resource(tmp_path: Path) -> None:
    html = write_report(*fabricated_run(tmp_path)).read_text(encoding="utf-8")
    assert "<script" not in html.lower()
    assert not re.search(r"(src|href|action)\s*=\s*[\"']?(https?:|//)|@import|url\(\s*[\"']?(https?:|//)", html)
    parsed = Tags()
    parsed.feed(html)
    assert not {"script", "link", "iframe", "img", "object", "embed", "form"} & set(parsed.tags)
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    assert parsed.tags.count("svg") == 3
    identities = [value for name, value in parsed.attributes if name == "id"]
    assert len(identities) == len(set(identities))


def test_texts_of_strangers_are_shown_not_obeyed(tmp_path: Path) -> None:
    html = write_report(*fabricated_run(tmp_path)).read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", html)
    parsed = Tags()
    parsed.feed(html)
    assert parsed.text.count("<script>alert(1)</script> ␛]52;c;") == 3  # a prompt, an answer, a failed edge case


def test_the_page_says_what_matters(tmp_path: Path) -> None:
    html = write_report(*fabricated_run(tmp_path)).read_text(encoding="utf-8")
    parsed = Tags()
    parsed.feed(html)
    text = " ".join(parsed.text.split())
    assert text.index("✓ Accepted: student Q4_K_M") < text.index("Candidates") < text.index("Data")
    for words in (
        "87.6–97.7",
        "only to be had as Q4_1",
        "thrown out: overlap with eval",
        "A CPU, 2 cores",
        "row by row: shown (p = 0.002).",
        "Against the teacher: −6.7 points (95 % interval −11.3 to −2.7) on 150 rows; right in 0 where it is wrong",
        "Its own prompt against the teacher’s whole one (student F16): +58.7 points",
        "88.7 % of 150 rows with the student's own prompt, before quantizing; the bar is 90 % of the 30 %",
        "student Q4_K_M: quantizing made 2 % of the loss: train more",
        'behind “…{"action":” 16 bits say “"off”, Q4_K_M “"on”',
        "quantizing: 16-bit student to this0.0040.040.299.8 %",
        "Case by case: what student Q4_K_M gets wrong, first",
    ):
        assert words in text, words
    assert 'name="viewport"' in html
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html


@pytest.mark.parametrize(
    ("trained", "quantized", "words"),
    [
        (0.9, 0.1, "quantizing made 10 % of the loss: train more"),
        (0.1, 0.9, "quantizing made 90 % of the loss: quantize less"),
        (0.6, 0.4, "quantizing made 40 % of the loss: both"),
        (None, 0.4, ""),
        (0.0, 0.0, "quantizing made 0 % of the loss: train more"),
    ],
)
def test_the_page_says_whether_to_train_more_or_to_quantize_less(
    trained: float | None, quantized: float, words: str
) -> None:
    told = {"f16_quant": {"mean": quantized}} | ({} if trained is None else {"teacher_f16": {"mean": trained}})
    (found,) = losses({"Q4_K_M": told, "Q8_0": {"bytes": 1}})
    assert found["advice"].startswith(words)
    assert bool(found["advice"]) == bool(words)


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    recipe, run = fabricated_run(tmp_path)
    first = write_report(recipe, run).read_bytes()
    assert write_report(recipe, run).read_bytes() == first


@pytest.mark.filterwarnings("ignore:Glyph")
def test_charts_keep_strangers_texts_as_text() -> None:
    rows = [student("Q8_0", 145, name="<b>&$x$ \x1b")]
    svg = latency_chart(rows, TARGET, None) or ""
    assert "&lt;b&gt;&amp;$x$ ␛" in svg
    assert svg.startswith("<svg")
    assert "currentColor" in svg
    assert "&lt;i&gt;" in (rejection_chart({"<i>": 3}) or "")


def test_there_is_no_chart_of_nothing() -> None:
    assert latency_chart([], TARGET, None) is None
    assert latency_chart(evaluation_without_times(), TARGET, None) is None
    assert loss_chart([]) is None
    assert rejection_chart({"schema": 0}) is None


def evaluation_without_times() -> list[dict[str, Any]]:
    return [{**one, "latency_ms": None} for one in evaluation()["candidates"]]


@given(st.text())
def test_no_text_can_steer_a_terminal(text: str) -> None:
    shown = visible(text)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown)
    assert "\n" not in one_line(text)
    assert visible(shown) == shown


def test_the_command_prints_one_json_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, run = fabricated_run(tmp_path)
    show_report(run.path, as_json=True)
    out = capsys.readouterr().out
    assert out.isascii()
    assert json.loads(out)["chosen"] == "student Q4_K_M"
    assert not (run.path / "report.html").exists()


def test_the_command_prints_a_table_and_writes_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, run = fabricated_run(tmp_path)
    show_report(run.path, as_json=False)
    shown = capsys.readouterr()
    assert "accepted: student Q4_K_M" in shown.out
    assert "87.6–97.7" in shown.out
    assert str(run.path / "report.html") in shown.err.replace("\n", "")
    assert HOSTILE not in shown.out


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EdgeDistillError, match="not a run folder"):
        show_report(tmp_path, as_json=False)


def test_the_loss_chart_shows_the_score_where_it_was_measured() -> None:
    points = [{"step": step, "loss": 2.0 / step} for step in range(1, 9)]
    plain, scored = loss_chart(points), loss_chart([*points[:-1], {**points[-1], "valid_loss": 0.5, "score": 0.75}])
    assert plain is not None
    assert scored is not None
    assert "right answers, %" in scored
    assert "right answers, %" not in plain
