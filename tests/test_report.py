"""The report: one document, one page that is safe to open."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fabricated_run import HOSTILE, SUMMARIES, bench, candidate, evaluation, fabricated_run
from hypothesis import given
from hypothesis import strategies as st

from edgedistill.commands.report import print_report, show_report
from edgedistill.errors import EdgeDistillError
from edgedistill.report.charts import latency_chart, loss_chart, rejection_chart
from edgedistill.report.page import losses, page, write_report
from edgedistill.report.summary import document, training_points
from edgedistill.report.wording import one_line, visible
from edgedistill.results import RESULTS
from edgedistill.store import Store

TARGET = {"target_ms": [100.0, 500.0], "percentile": 95, "metric": "e2e"}


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


def test_the_page_says_how_what_was_timed_was_decoded(tmp_path: Path) -> None:
    recipe, run = fabricated_run(tmp_path)
    assert "as llama-server and Ollama decode." in page(document(recipe, run), training_points(run))
    data = bench()
    data["conditions"]["decoding"] = "with the tokens that the grammar forces in one chunk"
    (run.folder("bench") / "bench.json").write_text(json.dumps(data), encoding="utf-8")
    html = page(document(recipe, run), training_points(run))
    assert "with the tokens that the grammar forces in one chunk." in html
    assert "Ollama decode" not in html


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


def test_examples_of_what_was_thrown_out_say_what_was_wrong_or_what_they_resemble(tmp_path: Path) -> None:
    recipe, run = fabricated_run(tmp_path)
    html = page(document(recipe, run), training_points(run))
    assert "<td>schema: $.value is no number</td><td>Dim the lamp.</td>" in html
    assert "<td>near duplicate: of b2</td><td>Dim the lamp.</td>" in html


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
    # a prompt, an answer, a failed edge case, two rows that were thrown out
    assert parsed.text.count("<script>alert(1)</script> ␛]52;c;") == 5


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
    times = {"e2e": {"p50": 200.0, "p90": 220.0, "p95": 240.0, "p99": 260.0}}
    rows = [{**candidate("<b>&$x$ \x1b", "student", "Q8_0", 145, 0.9), "latency_ms": times}]
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
