"""OpenAIChat, Verifier and `python -m judges.file` against a real HTTP server that misbehaves.

Guards against: a failure that becomes a 0.0, or goes uncounted; a call or a run that waits without bound; a
picture that is changed on its way to the judge; a judged file that loses rows or mixes verdicts of two
judges.
"""

import base64
import io
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from judge_server import COUNTS, MODEL, MODES, NO_TEXT, PLACES, JudgeServer
from PIL import Image

import reward
import toy
from data import save_queries
from judges import file as judges_file
from judges.server import OpenAIChat, data_url
from reward import VERDICT_SCHEMA, JudgeError, VerdictStatus, Verifier, VerifierUnreliable
from sampler import Rollout, Sample, SampleStatus
from training.rollouts import rollout_row

ROOT = Path(__file__).resolve().parent.parent
QUICK = {"tries": 2, "backoff": 0.01, "max_wait": 0.05}
SLOW = ("hang", "dribble", "slow headers")


def patience(mode: str) -> float:
    """Seconds of an attempt: few where all of them are waited for; else more than a busy machine needs."""
    return 0.4 if mode in SLOW else 20.0


QUERIES = [toy.make_query(family, i, "train", "half")
           for i in range(20) for family in ("ordinary", "shortcut", "hard")]


@pytest.fixture
def server():
    with JudgeServer(hang=2.0) as server:
        yield server


def wrong(query) -> str:
    """A solution with one false count that is carried through."""
    counts = [query.facts["counts"][0] + 1, *query.facts["counts"][1:]]
    value = toy.combine(query.facts["operator"], counts)
    return toy.solve(query.facts | {"counts": counts, "value": value,
                                    "answer": toy.answer_text(value, query.facts["threshold"])})


def tries(n: int) -> tuple[list, list[str]]:
    """-> n queries and responses, right and wrong and guessed, no two alike."""
    kinds = [lambda q: q.solution, wrong, lambda q: toy.solve(q.facts, "guess"),
             lambda q: q.solution + " ; red 99"]
    pairs = [(query, kind(query)) for kind in kinds for query in QUERIES]
    return [list(part) for part in zip(*pairs[:n])]


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def json_rows(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


# --------------------------------------------------------------------------------------------- a sound server

def test_verdicts_over_http_are_the_exact_ones(server):
    queries, responses = tries(100)
    verifier = Verifier(OpenAIChat(server.url))
    verdicts = verifier.judge(queries, responses)
    exact = toy.ToyVerifier().judge(queries, responses)
    assert all(v.status is VerdictStatus.JUDGED and (v.correct, v.consistent, v.report) == (
        e.correct, e.consistent, e.report) for v, e in zip(verdicts, exact, strict=True))
    assert 0.2 < sum(v.reward for v in verdicts) / 100 < 0.8 and sum(bool(v.report) for v in verdicts) > 20
    row = verifier.metrics()
    assert row["judge/calls"] == server.stats["calls"] == 100 and row["judge/http_retries"] == 0
    assert row["judge/prompt_tokens"] > row["judge/completion_tokens"] > 100 and row["judge/seconds"] > 0
    assert set(row) == {f"judge/{name}" for name in Verifier.METRICS}
    assert set(verifier.metrics().values()) == {0.0}


def test_what_is_sent(server, tmp_path, monkeypatch):
    query = QUERIES[0]
    (tmp_path / "a.png").write_bytes(query.images[0])
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    from_file = replace(query, images=[str(tmp_path / "a.png")])
    Verifier(OpenAIChat(server.url + "/v1/")).judge_one(from_file, "red 3")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    chat = OpenAIChat(server.url, max_tokens=77, structured=False, log=str(tmp_path / "log"))
    Verifier(chat).judge_one(query, "red 3")
    first, second = server.requests
    keys = [{name.lower(): value for name, value in request["headers"].items()}.get("authorization")
            for request in (first, second)]
    assert keys == [None, "Bearer secret"]
    assert first["body"]["response_format"]["json_schema"]["schema"] == VERDICT_SCHEMA
    assert "response_format" not in second["body"] and second["body"]["max_tokens"] == 77
    assert first["path"] == second["path"] == "/v1/chat/completions" and first["body"]["model"] == MODEL
    assert first["body"]["temperature"] == 0 and first["body"]["messages"] == second["body"]["messages"]
    assert "secret" not in (tmp_path / "log").read_text()


@pytest.mark.parametrize("name", ["png", "jpeg", "gif", "webp", "bmp"])
def test_pictures_travel_byte_for_byte_under_their_own_format(name, tmp_path):
    out = io.BytesIO()
    Image.new("RGB", (5, 3), "red").save(out, name)
    (tmp_path / "misnamed.png").write_bytes(out.getvalue())
    for image in (out.getvalue(), str(tmp_path / "misnamed.png")):
        head, _, body = data_url(image).partition(",")
        assert head == f"data:image/{name};base64" and base64.b64decode(body) == out.getvalue()


def test_a_picture_of_no_known_format_is_a_failed_verdict(server):
    verdict = Verifier(OpenAIChat(server.url)).judge_one(replace(QUERIES[0], images=[b"%PDF-1.7"]), "red 3")
    assert (verdict.error, verdict.reward, server.stats["calls"]) == ("unknown image format", None, 0)


# ----------------------------------------------------------------------------------------------- misbehaviour

RETRIED = {"hang": "TimeoutError", "dribble": "TimeoutError", "slow headers": "TimeoutError",
           "reset": "connection reset", "500": "HTTP 500", "503": "HTTP 503", "408": "HTTP 408",
           "425": "HTTP 425", "429": "HTTP 429", "empty": "empty answer", "half envelope": "half an answer",
           "wrong envelope": "not a chat answer"}
ASKED_AGAIN = {"half content": "not one JSON verdict", "wrong types": "Correctness is neither 0 nor 1",
               "other keys": "missing key Analysis", "yes": "Correctness is neither 0 nor 1",
               "inconsistent": "Correctness 1 with Self-Consistency 0"}
FINAL = {"cut off": "verdict cut off at max_tokens", "cut off in thought": "verdict cut off at max_tokens",
         "cut off at nothing": "verdict cut off at max_tokens",
         "refused": "refused", "refused in parts": "refused",
         "thoughts": "thoughts without an answer", "reasoning": "thoughts without an answer",
         "a tool": "answer without a text",
         **{str(n): f"HTTP {n}" for n in (400, 401, 403, 404, 413, 422)}}


def test_every_misbehaviour_is_tested():
    assert {*MODES, *NO_TEXT} <= {*RETRIED, *ASKED_AGAIN, *FINAL}


@pytest.mark.parametrize("mode", [*RETRIED, *ASKED_AGAIN, *FINAL])
def test_one_misbehaviour_that_stays(server, mode):
    server.misbehave, server.modes = 1.0, [mode]
    verifier, start = Verifier(OpenAIChat(server.url, timeout=patience(mode), **QUICK)), time.monotonic()
    verdict = verifier.judge_one(QUERIES[0], QUERIES[0].solution)
    name = (RETRIED | ASKED_AGAIN | FINAL)[mode]
    assert (verdict.status, verdict.reward, verdict.error) == (VerdictStatus.FAILED, None, name)
    row = verifier.metrics()
    assert row["judge/failed"] == verifier.counts[f"failed: {name}"] == 1
    asked = {mode in RETRIED: (2, 1, 0), mode in ASKED_AGAIN: (2, 0, 1), mode in FINAL: (1, 0, 0)}[True]
    assert (server.stats["calls"], row["judge/http_retries"], row["judge/asked_again"]) == asked
    assert time.monotonic() - start < verifier.chat.max_seconds + 0.8
    if mode == "404":
        assert verifier.last_error == ("HTTP 404: CUDA error: out of memory, " + 300 * "x")[:210]


@pytest.mark.parametrize("mode", [*PLACES, *COUNTS])
def test_a_text_is_found_and_a_count_missed_without_losing_the_verdict(server, mode):
    server.misbehave, server.modes = 1.0, [mode]
    verifier = Verifier(OpenAIChat(server.url, **QUICK))
    right, mistaken = verifier.judge([QUERIES[0]] * 2, [QUERIES[0].solution, wrong(QUERIES[0])])
    assert (right.reward, mistaken.reward, bool(mistaken.report)) == (1.0, 0.0, True)
    row = verifier.metrics()
    assert (server.stats["calls"], row["judge/calls"], row["judge/failed"]) == (2, 2, 0)
    if mode in COUNTS:
        assert row["judge/prompt_tokens"] == 2 * COUNTS[mode][1]
    else:
        assert row["judge/prompt_tokens"] > 100


@pytest.mark.parametrize("mode", [*RETRIED, *ASKED_AGAIN])
def test_one_misbehaviour_that_passes_is_recovered(server, mode):
    server.misbehave, server.modes, server.times = 1.0, [mode], 1
    verifier = Verifier(OpenAIChat(server.url, timeout=patience(mode), **QUICK))
    assert verifier.judge_one(QUERIES[0], QUERIES[0].solution).reward == 1.0
    row = verifier.metrics()
    assert (row["judge/http_retries"], row["judge/asked_again"]) == ((1, 0) if mode in RETRIED else (0, 1))
    assert row["judge/failed"] == 0 and server.stats[mode] == 1


def test_retry_after_is_waited_for_up_to_a_limit(server):
    server.misbehave, server.modes, server.times, server.retry_after = 1.0, ["429"], 1, 20
    messages = reward.judge_messages(QUERIES[0], "red 3", reward.judge_prompt("solution"))
    start = time.monotonic()
    OpenAIChat(server.url, **QUICK | {"max_wait": 0.25})(messages)
    assert 0.25 < time.monotonic() - start < 10


def test_thirty_per_cent_misbehaviour_costs_verdicts_but_never_truth(server, tmp_path):
    server.misbehave, server.seed = 0.3, 5
    queries, responses = tries(200)
    chat = OpenAIChat(server.url, timeout=1.0, **QUICK, log=str(tmp_path / "calls.jsonl"))
    verifier = Verifier(chat, max_failed_share=1.0)
    verdicts = verifier.judge(queries, responses)
    exact = toy.ToyVerifier().judge(queries, responses)
    failed = [v for v in verdicts if v.status is VerdictStatus.FAILED]
    assert all(v.reward is None and v.error for v in failed) and 4 <= len(failed) <= 100
    for verdict, truth in zip(verdicts, exact):
        if verdict not in failed:
            assert (verdict.correct, verdict.consistent) == (truth.correct, truth.consistent)
            assert verdict.report == truth.report and verdict.reward == truth.reward
    counts, row = verifier.counts, verifier.metrics()
    named = {k[8:]: n for k, n in counts.items() if k.startswith("failed: ")}
    assert named == Counter(v.error for v in failed)
    assert sum(named.values()) == counts["failed"] == len(failed)

    log = json_rows(tmp_path / "calls.jsonl")                            # one row per call, none lost or torn
    assert len(log) == row["judge/calls"] == 200 + row["judge/asked_again"]
    assert sum(r["attempts"] for r in log) == server.stats["calls"] == len(log) + row["judge/http_retries"]
    for name in ("prompt_tokens", "completion_tokens"):
        assert sum(r[name] for r in log) == row[f"judge/{name}"] > 0
    assert Counter((r["status"], bool(r["error"])) for r in log).keys() == {("ok", False), ("failed", True)}
    assert {r["url"] for r in log} == {server.url + "/v1"} and all(r["seconds"] > 0 for r in log)
    assert row["judge/seconds"] == pytest.approx(sum(r["seconds"] for r in log), rel=0.3)


# ------------------------------------------------------------------------------------------ how long it takes

@pytest.mark.parametrize("mode", ["hang", "dribble", "500", "other keys"])
def test_a_dead_server_stops_a_run_within_the_stated_bound(server, mode):
    server.misbehave, server.modes = 1.0, [mode]
    chat = OpenAIChat(server.url, timeout=patience(mode), **QUICK)
    verifier = Verifier(chat, concurrency=8, window=32)
    queries, responses = tries(200)
    start = time.monotonic()
    with pytest.raises(VerifierUnreliable) as stop:
        verifier.judge(queries, responses)
    bound = (math.ceil(7 / 8) + 1) * 2 * chat.max_seconds
    assert time.monotonic() - start < bound and f"noticed within {bound:.0f} s" in str(stop.value)
    assert re.match(r"7 of the last 7 verdicts failed \(7 x [^;]+; last: .+\); the limit is 6 of 32",
                    str(stop.value))
    assert "\n" not in str(stop.value)
    while verifier.counts["failed"] < verifier.counts["verdicts"]:    # those in flight, within the bound too
        assert time.monotonic() - start < bound
        time.sleep(0.01)
    assert 7 <= verifier.counts["failed"] == verifier.counts["verdicts"] <= 7 + 8 - 1


def test_no_more_calls_at_once_than_asked_for(server):
    server.delay = (0.06, 0.06)
    Verifier(OpenAIChat(server.url), concurrency=5).judge(*tries(40))
    assert server.stats["max_in_flight"] == 5


def test_two_servers_share_the_work(server):
    server.delay = (0.02, 0.02)
    with JudgeServer(delay=(0.02, 0.02)) as other:
        Verifier(OpenAIChat(f"{server.url}, {other.url}"), concurrency=6).judge(*tries(60))
        assert server.stats["calls"] + other.stats["calls"] == 60
        assert 20 <= other.stats["calls"] <= 40 and server.stats["max_in_flight"] <= 4


def test_the_least_busy_server_is_asked(server):
    server.delay = (0.3, 0.3)
    with JudgeServer() as quick:
        Verifier(OpenAIChat(f"{server.url},{quick.url}"), concurrency=4).judge(*tries(40))
        assert server.stats["calls"] < 14 and server.stats["calls"] + quick.stats["calls"] == 40


def test_a_dead_server_beside_a_living_one_costs_no_verdict(server):
    dead = f"http://127.0.0.1:{closed_port()}/v1"
    chat = OpenAIChat(f"{dead},{server.url}", model=MODEL, timeout=2.0, backoff=0.01, max_wait=30.0)
    verifier = Verifier(chat, concurrency=4)
    assert {v.status for v in verifier.judge(*tries(60))} == {VerdictStatus.JUDGED}
    assert server.stats["calls"] == 60
    assert chat.counts["http_retries"] == chat.taken[dead] <= 4              # then avoided
    chat.avoid[dead] = 0.0                                                   # its time is over
    assert [chat._take() for _ in range(8)].count(dead) == 1                 # one call finds out


# -------------------------------------------------------------------------------------------------- the start

def test_check_at_the_start(server):
    chat = OpenAIChat(server.url)
    chat.check()
    assert chat.model == MODEL
    with pytest.raises(JudgeError, match=rf"{server.url}/v1 serves {MODEL}: not 'Qwen'"):
        OpenAIChat(server.url, model="Qwen").check()
    dead = f"http://127.0.0.1:{closed_port()}"
    with pytest.raises(JudgeError, match=f"{dead}/v1 cannot be asked: connection refused"):
        OpenAIChat(f"{server.url},{dead}").check()
    with pytest.raises(JudgeError, match="cannot be asked: HTTP 404: no such path: /v2/models"):
        OpenAIChat(server.url + "/v2").check()
    server.models = ["a", "b"]
    with pytest.raises(JudgeError, match="serves a, b: name the one to ask"):
        OpenAIChat(server.url).check()
    OpenAIChat(server.url, model="b").check()


@pytest.mark.parametrize("url", [
    "", "localhost:8000", "ftp://host", "http://", "http://host:port", "http://a b", "http://a,",
    "http://user:secret@host", "http://host/v1?x=1", "http://host:1234567", "http://host:65536"])
def test_bad_urls(url):
    with pytest.raises(JudgeError, match="^bad URL: .*is not like http://host:8000"):
        OpenAIChat(url)


# --------------------------------------------------------------------------------------------- judging a file

def write_rows(folder: Path, queries: list, responses: list[str]) -> Path:
    save_queries(queries, folder / "queries.jsonl")
    rows = [row | {"response": text}
            for row, text in zip(json_rows(folder / "queries.jsonl"), responses, strict=True)]
    (folder / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "responses.jsonl"


def command(monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    """-> exit status, stdout, and stderr without the bar."""
    monkeypatch.setattr(sys, "argv", ["judges.file", *map(str, arguments)])
    status = 0
    try:
        judges_file.main()
    except SystemExit as stop:
        status = stop.code
    told = capsys.readouterr()
    lines = [line for line in re.split("[\r\n]", told.err) if line.strip() and "%|" not in line]
    return status, told.out, "\n".join(lines)


def test_table_of_a_file_made_by_hand(server, tmp_path, monkeypatch, capsys):
    q, other = QUERIES[0], replace(QUERIES[2], answer="999")            # its answer is wrong in the file only
    responses = [q.solution, toy.solve(q.facts), f"red 99 ; {q.solution}", wrong(q), "", other.solution]
    file = write_rows(tmp_path, [q] * 5 + [other], responses)
    status, out, _ = command(monkeypatch, capsys, "--url", server.url, "--responses", file,
                             "--out", tmp_path / "out")
    assert status == 0
    table = {line[:42].strip(): line[42:].strip() for line in out.splitlines()}
    assert table["judged"] == "6 of 6"
    assert table["reward, mean"] == table["answer right by rule"] == "0.500"
    assert table["judge and rule agree"] == "0.667"
    assert table["answer right, judged wrong"].startswith("1 ")              # row 3
    assert table["answer wrong, judged right"].startswith("1 ")              # row 6
    rows = sorted(json_rows(tmp_path / "out"), key=lambda row: row["name"])
    assert [row["name"] for row in rows] == list("123456")
    assert [row["reward"] for row in rows] == [1, 1, 0, 0, 0, 1]
    assert [row["answer_right"] for row in rows] == [True, True, True, False, False, False]
    assert rows[3]["report"] and rows[0]["id"] == q.id and server.stats["calls"] == 5        # "" by rule


def test_failed_verdicts_are_shown_by_name_and_asked_for_again_next_time(
        server, tmp_path, monkeypatch, capsys):
    queries, responses = tries(30)
    file = write_rows(tmp_path, queries, responses)
    server.misbehave, server.modes = 0.2, ["refused", "400"]
    assert command(monkeypatch, capsys, "--url", server.url, "--responses", file)[0] == 0
    out = tmp_path / "responses.verdicts.jsonl"
    failed = [row for row in json_rows(out) if row["status"] == "failed"]
    assert len(json_rows(out)) == 30 and {row["error"] for row in failed} == {"refused", "HTTP 400"}
    assert all(row["reward"] is None for row in failed)
    with out.open("a") as end:
        end.write('{"name": "3", "torn')
    server.misbehave, calls = 0.0, server.stats["calls"]
    told = command(monkeypatch, capsys, "--url", server.url, "--responses", file)[1]
    assert server.stats["calls"] - calls == len(failed) and "30 of 30" in told and "refused" not in told
    rewards = {row["name"]: row["reward"] for row in json_rows(out)}
    exact = toy.ToyVerifier().judge(queries, responses)
    assert [rewards[str(i + 1)] for i in range(30)] == [v.reward for v in exact]

    status, _, told = command(monkeypatch, capsys, "--url", server.url, "--responses", file,
                              "--context", "answer")
    assert status == 2 and f"{out}:1: is of other responses, model or context" in told
    monkeypatch.chdir(tmp_path)                                             # the same file under another path
    assert command(monkeypatch, capsys, "--url", server.url, "--responses", "responses.jsonl")[0] == 0
    (tmp_path / "notes").write_text('{"name": "1"}\n')
    status, _, told = command(monkeypatch, capsys, "--url", server.url, "--responses", file, "--out", "notes")
    assert status == 2 and told == "error: notes:1: not a verdict"


def test_a_killed_session_loses_nothing(server, tmp_path, monkeypatch, capsys):
    server.delay = (0.15, 0.15)
    file, out = write_rows(tmp_path, *tries(60)), tmp_path / "out.jsonl"
    arguments = ["--url", server.url, "--responses", str(file), "--out", str(out), "--concurrency", "3"]
    child = subprocess.Popen([sys.executable, "-m", "judges.file", *arguments], cwd=ROOT,
                             stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 60
    while not out.exists() or out.read_bytes().count(b"\n") < 8:
        assert time.monotonic() < deadline and child.poll() is None
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    there = out.read_bytes().count(b"\n")
    assert 8 <= there < 60
    server.delay = (0.0, 0.0)
    assert command(monkeypatch, capsys, *arguments)[0] == 0
    assert sorted(int(row["name"]) for row in json_rows(out)) == list(range(1, 61))
    assert server.stats["calls"] <= 60 + 3                                 # what was in flight is asked again


def test_a_finished_run_can_be_judged_again(server, tmp_path, monkeypatch, capsys):
    (tmp_path / "images").mkdir()
    rows, truth = [], {}
    for number, query in enumerate(QUERIES[:4], start=1):
        samples = [Sample([1], [0.0], SampleStatus.COMPLETED, text)
                   for text in (query.solution, wrong(query))]
        verdicts = toy.ToyVerifier().judge([query] * 2, [sample.text for sample in samples])
        truth |= {f"{number}/{stage}/{i}": v.reward for stage in (1, 2) for i, v in enumerate(verdicts)}
        group = SimpleNamespace(members=[SimpleNamespace(advantage=0.0)] * 4,
                                kind=SimpleNamespace(value="mixed"))
        rollout = Rollout(query, None, query.id, samples, verdicts, samples, verdicts, [True, False], group)
        rows.append(rollout_row(rollout, 1, tmp_path))
    (tmp_path / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, out, _ = command(monkeypatch, capsys, "--url", server.url,
                             "--responses", tmp_path / "rollouts.jsonl")
    assert status == 0 and "16 of 16" in out
    assert {row["name"]: row["reward"] for row in json_rows(tmp_path / "rollouts.verdicts.jsonl")} == truth


def test_an_unreliable_verifier_ends_with_one_line_and_status_3(server, tmp_path, monkeypatch, capsys):
    server.misbehave, server.modes = 1.0, ["403"]
    file = write_rows(tmp_path, *tries(60))
    status, _, told = command(monkeypatch, capsys, "--url", server.url, "--responses", file)
    assert status == 3
    assert told.startswith("stopped: 13 of the last 13 verdicts failed (13 x HTTP 403; last: HTTP 403")
    assert "\n" not in told and "the same command goes on" in told and server.stats["calls"] <= 13 + 15


GOOD = {"id": "a", "question": "how many ?", "solution": "red 3", "answer": "3", "response": "red 3"}


@pytest.mark.parametrize("row, told", [
    ("{", "not a query with a response"), ("[1]", "not a query with a response"), ("3", "not a query"),
    ({**GOOD, "colour": "red"}, "colour"),
    ({k: v for k, v in GOOD.items() if k != "response"}, "'response' is missing"),
    ({k: v for k, v in GOOD.items() if k != "answer"}, "answer"),
    ({**GOOD, "response": 5}, "'response' is not a text"),
    ({**GOOD, "solution": None}, "field 'solution' is no text: null"),
    ({**GOOD, "images": ["no.png"]}, "image not found: "),
    ({**GOOD, "images": "no.png"}, "image not found: "),
    ({**GOOD, "images": [3]}, "not a query with a response"),
    ({"stage1": [{}]}, "is missing"), ({"stage1": [{"text": "x"}], "stage2": []}, "'query' is missing"),
])
def test_bad_rows_name_file_and_line(server, tmp_path, monkeypatch, capsys, row, told):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(GOOD) + "\n\n" + (row if isinstance(row, str) else json.dumps(row)) + "\n")
    status, _, line = command(monkeypatch, capsys, "--url", server.url, "--responses", file)
    assert status == 2 and line.startswith(f"error: {file}:3: ") and told in line and "\n" not in line
    assert not server.requests and not file.with_suffix(".verdicts.jsonl").exists()


def test_a_numbers_row_is_read_as_training_reads_it(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({**GOOD, "id": 17, "answer": 3}))
    (query, response), = judges_file.load_responses(file).values()
    assert (query.id, query.answer, response) == ("17", "3", "red 3")


def test_other_bad_input(server, tmp_path, monkeypatch, capsys):
    file = tmp_path / "rows.jsonl"
    for content, told in ((None, "data file not found"), (b"\n", "no responses in"),
                          (b"\xff\xfe", "not UTF-8")):
        if content is not None:
            file.write_bytes(content)
        status, _, line = command(monkeypatch, capsys, "--url", server.url, "--responses", file)
        assert status == 2 and line.startswith("error: ") and told in line and "\n" not in line
    file.write_text(json.dumps(GOOD) + "\n")
    for url, told in (("nonsense", "bad URL"), (f"http://127.0.0.1:{closed_port()}", "connection refused")):
        status, _, line = command(monkeypatch, capsys, "--url", url, "--responses", file)
        assert status == 2 and told in line and "\n" not in line
    for flags in ((), ("--responses", file),
                  ("--responses", file, "--url", server.url, "--concurrency", "0")):
        assert command(monkeypatch, capsys, *flags)[0] == 2
    status, _, line = command(monkeypatch, capsys, "--url", server.url, "--responses", file,
                              "--out", tmp_path / "a/b")
    assert status == 2 and line.startswith("error: ") and "\n" not in line
