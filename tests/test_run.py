"""The run folder: a path that exists proves nothing, a checksum does."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgedistill.errors import EdgeDistillError, Stopped
from edgedistill.run import Run, file_sha256, free_space, open_run, orderly_stop, stop_if_asked, write_whole

HOLD = """
import sys
from pathlib import Path
from edgedistill.run import Run

with Run(Path(sys.argv[1])).lock():
    sys.stdout.write("held\\n")
    sys.stdout.flush()
    sys.stdin.read()
"""
WRITE = """
import sys
from pathlib import Path
from edgedistill.run import write_whole

path, number = Path(sys.argv[1]), 0
while True:
    number += 1
    write_whole(path, bytes([number % 256]) * 2_000_000)
    sys.stdout.write("x")
    sys.stdout.flush()
"""


def finished(run: Run, stage: str = "curate", key: str = "key") -> Path:
    folder = run.begin(stage, key, afresh=True)
    (folder / "rows.jsonl").write_text("{}\n", encoding="utf-8")
    (folder / "inner").mkdir()
    (folder / "inner" / "more.txt").write_text("more", encoding="utf-8")
    run.finish(stage, key, {"rows": 1}, 0.5)
    return folder


def test_a_stage_goes_from_missing_over_partial_to_done(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.state("curate", "key") == "missing"
    run.begin("curate", "key", afresh=True)
    assert run.state("curate", "key") == "partial"
    finished(run)
    assert run.state("curate", "key") == "done"
    assert run.summary("curate") == {"rows": 1}


def test_another_key_is_stale_whether_finished_or_not(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.begin("curate", "old", afresh=True)
    assert run.state("curate", "key") == "stale"
    finished(run, key="old")
    assert run.state("curate", "key") == "stale"


@pytest.mark.parametrize("name", ["rows.jsonl", "inner/more.txt"])
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes() + b" ")])
def test_a_file_that_is_gone_or_changed_makes_the_stage_not_done(
    tmp_path: Path, name: str, damage: Callable[[Path], Any]
) -> None:
    run = Run(tmp_path)
    damage(finished(run) / name)
    assert run.state("curate", "key") == "partial"


def test_checkpoints_may_go_without_harm(tmp_path: Path) -> None:
    run = Run(tmp_path)
    folder = run.begin("train", "key", afresh=True)
    (folder / "checkpoints" / "step-1").mkdir(parents=True)
    (folder / "checkpoints" / "step-1" / "weights").write_bytes(b"1")
    run.finish("train", "key", {}, 0.5)
    (folder / "checkpoints" / "step-1" / "weights").unlink()
    assert run.state("train", "key") == "done"


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "{}", '{"key": "key"}', '"text"', "\x00"])
def test_a_record_that_does_not_hold_counts_as_missing(tmp_path: Path, text: str) -> None:
    run = Run(tmp_path)
    (finished(run) / "stage.json").write_text(text, encoding="utf-8")
    assert run.state("curate", "key") == "missing"


def test_the_record_says_with_what_and_where_it_was_made(tmp_path: Path) -> None:
    run = Run(tmp_path)
    finished(run)
    record = run.record("curate")
    assert record is not None
    assert set(record["files"]) == {"rows.jsonl", "inner/more.txt"}
    assert record["files"]["rows.jsonl"] == file_sha256(tmp_path / "curate" / "rows.jsonl")
    assert record["versions"]["python"]
    assert record["machine"]["cores"] >= 1
    assert record["started_at"] <= record["finished_at"]


def test_a_resumed_stage_keeps_its_files_and_one_begun_afresh_has_none(tmp_path: Path) -> None:
    run = Run(tmp_path)
    folder = finished(run)
    assert (run.begin("curate", "key", afresh=False) / "rows.jsonl").is_file()
    run.begin("curate", "key", afresh=True)
    assert [path.name for path in folder.iterdir()] == ["stage.json"]


def test_half_written_files_and_folders_of_a_killed_process_are_swept(tmp_path: Path) -> None:
    run = Run(tmp_path)
    folder = run.begin("train", "key", afresh=True)
    for partial in ("checkpoints/step-2.partial-99", "student.partial-99"):
        (folder / partial / "deep").mkdir(parents=True)
        (folder / partial / "deep" / "weights.partial-98").write_bytes(b"half")
    (folder / "rows.jsonl.partial-97").write_bytes(b"half")
    (folder / "rows.jsonl").write_bytes(b"whole")
    run.begin("train", "key", afresh=False)
    left = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    assert left == {"stage.json", "rows.jsonl", "checkpoints"}


def test_what_has_not_finished_has_no_summary(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for begin in (lambda: None, lambda: run.begin("teach", "key", afresh=True)):
        begin()
        with pytest.raises(EdgeDistillError, match="'teach' has not finished") as caught:
            run.summary("teach")
        assert "edgedistill teach RECIPE" in caught.value.hint


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EdgeDistillError, match="not a run folder"):
        open_run(tmp_path)
    (tmp_path / "recipe.toml").write_text("", encoding="utf-8")
    with pytest.raises(EdgeDistillError, match="not a run folder"):  # the folder of a recipe
        open_run(tmp_path)
    (tmp_path / "recipe" / "this").mkdir(parents=True)
    (tmp_path / "recipe" / "this" / "recipe.toml").write_text("", encoding="utf-8")
    assert open_run(tmp_path).path == tmp_path


def test_a_reader_never_sees_half_a_file_while_its_writer_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for _ in range(4):
        child = subprocess.Popen([sys.executable, "-c", WRITE, str(path)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        assert child.stdout.read(1) == b"x"
        for _ in range(10):
            data = path.read_bytes()
            assert len(data) == 2_000_000
            assert len(set(data)) == 1
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
        data = path.read_bytes()
        assert (len(data), len(set(data))) == (2_000_000, 1)


def test_what_cannot_be_written_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_whole(path, b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Stopped, match=r"file: No space left on device \(\d+ MB free\)"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_a_second_holder_is_refused_and_told_who(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    with holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Stopped, match=f"is in use by process {holder.pid} on ") as caught, Run(tmp_path).lock():
            pass
        assert caught.value.exit_code == 75
        holder.stdin.close()
    with Run(tmp_path).lock():
        pass


def test_a_killed_holder_leaves_no_lock(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        holder.kill()
    with Run(tmp_path).lock():
        assert f"process {os.getpid()}" in (tmp_path / ".lock.holder").read_text(encoding="utf-8")
    assert not (tmp_path / ".lock.holder").exists()


def test_a_run_folder_that_cannot_be_written_stops_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(EdgeDistillError, match="file/run: ") as caught, Run(tmp_path / "file" / "run").lock():
        pass
    assert "\n" not in caught.value.message


def test_the_first_signal_asks_to_stop_and_the_next_run_begins_unasked() -> None:
    with orderly_stop():
        stop_if_asked()
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Stopped, match="stopped as asked") as caught:
            stop_if_asked()
        assert caught.value.exit_code == 75
    with orderly_stop():
        stop_if_asked()


def test_the_second_signal_leaves_at_once_with_130() -> None:
    code = (
        "import os, signal\nfrom edgedistill.run import orderly_stop\n"
        "with orderly_stop():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    os._exit(0)\n"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 130


def test_free_space_is_that_of_the_first_folder_that_exists(tmp_path: Path) -> None:
    assert free_space(tmp_path / "not" / "yet" / "there") > 0


def test_a_record_survives_a_kill_between_begin_and_finish(tmp_path: Path) -> None:
    run = Run(tmp_path)
    finished(run)
    run.begin("curate", "key", afresh=False)
    record = json.loads((tmp_path / "curate" / "stage.json").read_text(encoding="utf-8"))
    assert record["finished"] is False
    assert run.state("curate", "key") == "partial"
