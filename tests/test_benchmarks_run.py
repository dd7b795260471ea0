"""python -m benchmarks.run: all eleven benchmarks end to end, with and without a judge.

Guards against: a run that is killed and goes on differently, a judge that fails and counts as a wrong answer.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
from benchmark_rows import ROWS, item_of, picture, write_data
from conftest import ALONE, MODEL, ROOT

from benchmarks.judging import judge_prompt, read_judgement
from benchmarks.run import main, run_benchmarks, score_samples
from benchmarks.table import BENCHMARKS
from benchmarks.wording import LETTER, PUT_IN_BOX
from data import DataError
from judges.server import OpenAIChat, TransientError
from reward import JudgeError, VerifierUnreliable
from tools.files import read_rows


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("benchmarks")
    for name in ROWS:
        write_data(name, folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("cache")


def arguments(data_dir: Path, out: Path, names: str = "all", **more) -> SimpleNamespace:
    limit = 3 if names in ("all", "wemath", "dynamath") else 0
    return SimpleNamespace(**{
        "model": MODEL, "data_dir": str(data_dir), "output_dir": out, "engine": "hf", "harness": "ours",
        "judge": None, "judge_model": "", "judge_timeout": 5.0, "limit": limit, "temperature": 0.0,
        "max_new_tokens": 8, "max_pixels": 100 * 100, "max_context": 4096, "batch_size": 8,
        "engine_memory": 0.5,
        "seed": 0, "names": names} | more)


def measure(args) -> tuple[dict, str]:
    names = list(BENCHMARKS) if args.names == "all" else args.names.split(",")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    table = run_benchmarks([BENCHMARKS[name] for name in names], args)
    return json.loads((args.output_dir / "scores.json").read_text()), table


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> tuple[Path, dict, str]:
    """All eleven with the built-in policy and the transformers engine."""
    args = arguments(data, tmp_path_factory.mktemp("whole"))
    return (args.output_dir, *measure(args))


def test_all_eleven_end_to_end(whole):
    out, scores, table = whole
    assert list(scores["benchmarks"]) == list(BENCHMARKS)
    for name, s in scores["benchmarks"].items():
        rows = list(read_rows(out / f"{name}.jsonl"))
        assert s["n"] == len(rows) > 0 and s["partial"] and s["of"] == BENCHMARKS[name].rows
        assert set(BENCHMARKS[name].paper) | {s["headline"]} <= set(s["numbers"]) | {"cross",
                                                                                     "Reasoning", "general"}
        assert s["truncated"] > 0 and all(r["tokens"] <= 8 and r["prompt"] and "right" in r for r in rows)
        assert all("\\boxed{}" in r["prompt"] for r in rows)
        assert f"**{BENCHMARKS[name].title}**" in table
        assert 0 <= s["numbers"][s["headline"]]["low"] <= s["numbers"][s["headline"]]["high"] <= 100
    saved = json.loads((out / "settings.json").read_text())
    assert saved["settings"]["max_new_tokens"] == 8 and saved["settings"]["harness"] == "ours"
    assert saved["prompts"]["wemath"] == ["{question}\n{options}\n" + LETTER]
    assert saved["prompts"]["mathvista"] == ["{query}\n" + put for put in PUT_IN_BOX.values()][::-1]
    assert "| 44.93 | 46.86 | 48.35 |" in table and "| 59.31 | 64.25 | 65.22 |" in table


def test_samples_page(whole, tmp_path):
    page = (whole[0] / "samples.html").read_text()
    shown = sum(min(5, s["n"]) for s in whole[1]["benchmarks"].values())
    assert page.count("<article") == page.count(
        "data:image/jpeg;base64,") == shown > 33 and "http" not in page
    args = arguments(write_data("mmstar", tmp_path,
                                change=lambda row: row | {"question": "<script>x</script> ?"}),
                     tmp_path / "out", "mmstar")
    measure(args)
    page = (args.output_dir / "samples.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page


def test_one_more_benchmark_joins_the_table(data, tmp_path):
    measure(arguments(data, tmp_path, "mmstar", limit=2))
    scores, table = measure(arguments(data, tmp_path, "logicvista", limit=2))
    assert list(scores["benchmarks"]) == ["mmstar", "logicvista"] and "not formed" in table
    assert set(json.loads((tmp_path / "settings.json").read_text())["prompts"]) == {"mmstar", "logicvista"}


class Killed(BaseException):
    pass


def test_resumed_is_uninterrupted(whole, data, tmp_path, monkeypatch):
    args = arguments(data, tmp_path, batch_size=3)
    from sampler import HFEngine
    generate, calls = HFEngine.generate, []

    def dies(self, *given):
        calls.append(len(given[0]))
        if len(calls) == 12:
            raise Killed
        return generate(self, *given)
    monkeypatch.setattr(HFEngine, "generate", dies)
    with pytest.raises(Killed):
        measure(args)
    half = max(tmp_path.glob("*.jsonl"), key=lambda file: file.stat().st_mtime)
    with open(half, "a") as file:
        file.write('{"id": "half a li')
    measure(args)
    for name in BENCHMARKS:
        assert (tmp_path / f"{name}.jsonl").read_text() == (whole[0] / f"{name}.jsonl").read_text()
    assert (tmp_path / "table.md").read_text() == (whole[0] / "table.md").read_text()
    sampled = sum(calls) - calls[11]
    assert sampled == sum(s["n"] for s in whole[1]["benchmarks"].values())             # nothing twice
    monkeypatch.setattr(HFEngine, "__init__", None)                                   # nothing left to sample
    measure(args)


def test_other_settings_are_refused(data, tmp_path):
    measure(arguments(data, tmp_path, "mmstar"))
    for name, other in [("max_new_tokens", 9), ("harness", "vlmevalkit"), ("seed", 1),
                        ("max_pixels", 64 * 64),
                        ("max_context", 2048)]:
        with pytest.raises(DataError,
                           match=f"was made with {name} .*, not {other}: choose another --output_dir"):
            measure(arguments(data, tmp_path, "mmstar", **{name: other}))
    other = write_data("mmstar", tmp_path / "other",
                       change=lambda row: row | {"question": "something else ?"})
    with pytest.raises(DataError, match="item 0 was asked in other words"):
        measure(arguments(other, tmp_path, "mmstar"))
    other = write_data("mmstar", tmp_path / "pictures", change=lambda row: row | {"image": picture(9)})
    with pytest.raises(DataError, match="item 0 had another picture"):
        measure(arguments(other, tmp_path, "mmstar"))
    other = write_data("mmstar", tmp_path / "fewer", size=3)
    with pytest.raises(DataError, match="item 3 is not in the data any more"):
        measure(arguments(other, tmp_path, "mmstar"))
    measure(arguments(data, tmp_path, "mmstar", model=os.path.relpath(MODEL)))         # the same one
    for broken, said in [("{", "cannot read .*settings.json"),
                         ("{}", "settings.json has no settings and prompts")]:
        (tmp_path / "settings.json").write_text(broken)
        with pytest.raises(DataError, match=said):
            measure(arguments(data, tmp_path, "mmstar"))
    (tmp_path / "settings.json").unlink()
    with pytest.raises(DataError, match="cannot read .*settings.json"):
        measure(arguments(data, tmp_path, "mmstar"))


def test_the_harness_changes_prompts_and_scores(data, tmp_path):
    scores, table = measure(arguments(data, tmp_path, harness="vlmevalkit", limit=1))
    rows = list(read_rows(tmp_path / "hrbench8k.jsonl"))
    assert rows[0]["prompt"].startswith("Question: how many red ?\nOptions:\nA. ")
    rows = [r for name in BENCHMARKS for r in read_rows(tmp_path / f"{name}.jsonl")]
    assert len(rows) > 30 and not any("boxed" in r["prompt"] for r in rows)
    assert scores["benchmarks"]["simplevqa"]["undecided"] == 1 and "Prompts and rules: vlmevalkit." in table


# ----------------------------------------------------------------------------------------------- with a judge

@pytest.fixture
def chat(monkeypatch):
    """A judge that says what `chat.says(text)` returns; an exception is raised."""
    def answer(self, messages):
        text = messages[0]["content"][0]["text"]
        chat.calls.append(text)
        said = chat.says(text)
        if isinstance(said, Exception):
            raise said
        return said
    chat = SimpleNamespace(calls=[], says=lambda text: '{"extracted_answer": "x", "score": 1}')
    monkeypatch.setattr(OpenAIChat, "__call__", answer)
    monkeypatch.setattr(OpenAIChat, "check", lambda self: setattr(self, "model", "judge"))
    return chat


@pytest.fixture
def long_replies(monkeypatch):
    from sampler import HFEngine, Sample, SampleStatus
    reply = "I would say that it is rather much in there"
    monkeypatch.setattr(HFEngine, "generate", lambda self, requests, temperature=None: [
        [Sample([1, 2], [0.0, 0.0], SampleStatus.COMPLETED, reply)] for _ in requests])


def test_a_judge_can_be_added(data, tmp_path, chat, long_replies, monkeypatch):
    args = arguments(data, tmp_path, "mathverse", limit=0)
    scores, table = measure(args)
    s = scores["benchmarks"]["mathverse"]
    assert s["undecided"] == 10 and (s["numbers"]["accuracy"]["low"],
                                     s["numbers"]["accuracy"]["high"]) == (0.0, 100.0)
    assert "0.0 to 100.0" in table
    chat.says = lambda text: json.dumps({"extracted_answer": "x", "score": int("Choices" in text)})
    s = measure(arguments(data, tmp_path, "mathverse", limit=0,
                          judge="http://h:1"))[0]["benchmarks"]["mathverse"]
    assert s["undecided"] == 0 and s["judged"] == 10 and s["numbers"]["accuracy"]["low"] == 50.0
    assert {r["by"] for r in read_rows(tmp_path / "mathverse.jsonl")} == {"judge"}
    asked = len(chat.calls)
    measure(arguments(data, tmp_path, "mathverse", limit=0, judge="http://h:1"))
    assert len(chat.calls) == asked <= 10                                    # known answers are not asked for
    assert {r["model"] for r in read_rows(tmp_path / "judge.jsonl")} == {s["judge"]} == {"judge"}
    again = measure(args)[0]["benchmarks"]["mathverse"]                             # and stay without a judge
    assert again == s and len(chat.calls) == asked
    monkeypatch.setattr("judges.server.OpenAIChat.check", lambda self: setattr(self, "model", "other"))
    s = measure(arguments(data, tmp_path, "mathverse", limit=0,
                          judge="http://h:1"))[0]["benchmarks"]["mathverse"]
    assert s["judge"] == "other" and len(chat.calls) == 2 * asked                # another judge is asked anew


class Server(BaseHTTPRequestHandler):
    """The least of an OpenAI-compatible server: everything is right."""

    def do_GET(self):
        body = json.dumps({"data": [{"id": "judge"}]}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert asked["temperature"] == 0 and "response_format" not in asked
        said = {"extracted_answer": "x", "score": 1}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"choices": [{"message": {"content": json.dumps(said)}}]}).encode())

    def log_message(self, *text):
        pass


def test_a_judge_behind_a_url(data, tmp_path, long_replies):
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        s = measure(arguments(data, tmp_path, "mathverse", judge=url))[0]["benchmarks"]["mathverse"]
        server.shutdown()
    assert s["judged"] == 10 and s["numbers"]["accuracy"]["low"] == 100.0
    assert s["judge"] == "judge"


def test_a_failed_judge_is_counted(data, tmp_path, chat, long_replies):
    chat.says = lambda text: JudgeError("HTTP 500") if "Joint" in text else (
        "I cannot" if "\n94\n" in text else '{"extracted_answer": "", "score": 0}')
    s = measure(arguments(data, tmp_path, "charxiv_rq", judge="http://h:1"))[0]["benchmarks"]["charxiv_rq"]
    assert (s["judged"], s["judge_failed"], s["undecided"]) == (2, 2, 2)
    assert (s["numbers"]["all"]["low"], s["numbers"]["all"]["high"]) == (0.0, 50.0)
    assert "CharXiv-RQ: 2 judgements failed." in (tmp_path / "table.md").read_text()
    # In the harness a failure is a wrong answer.  Here it is asked again by the next command.
    args = arguments(data, tmp_path / "vek", "charxiv_rq", judge="http://h:1", harness="vlmevalkit")
    s = measure(args)[0]["benchmarks"]["charxiv_rq"]
    assert (s["judge_failed"], s["undecided"], s["numbers"]["all"]["high"]) == (2, 0, 0.0)
    chat.says = lambda text: '{"extracted_answer": "", "score": 1}'
    s = measure(arguments(data, tmp_path, "charxiv_rq", judge="http://h:1"))[0]["benchmarks"]["charxiv_rq"]
    assert (s["judge_failed"], s["numbers"]["all"]["low"]) == (0, 50.0)


def test_a_dead_judge_ends_the_run(tmp_path, chat, long_replies, capsys):
    chat.says = lambda text: TransientError("connection refused")
    folder = write_data("simplevqa", tmp_path, 60)
    args = arguments(folder, tmp_path / "out", "simplevqa", judge="http://h:1")
    with pytest.raises(VerifierUnreliable, match="the judge failed .* times in a row"):
        measure(args)
    assert len(chat.calls) < 60
    with pytest.raises(SystemExit) as ended:
        main(["--data_dir", str(folder), "--output_dir", str(tmp_path / "other"), "--benchmarks", "simplevqa",
              "--max_new_tokens", "8", "--judge", "http://h:1"])
    line = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 3 and line.startswith("stopped: the judge failed ")
    assert line.endswith("; the same command goes on")
    for said in ("I cannot", JudgeError("HTTP 400")):                   # a server that answers is not dead
        chat.says = lambda text, said=said: said
        assert measure(args)[0]["benchmarks"]["simplevqa"]["judge_failed"] == 60


def test_simplevqa_verdicts(data, tmp_path, chat, long_replies):
    verdicts = iter(["correct", "incorrect", "not attempted", "not attempted"])
    chat.says = lambda text: json.dumps({"extracted_answer": "", "verdict": next(verdicts)})
    s = measure(arguments(data, tmp_path, "simplevqa", judge="http://h:1"))[0]["benchmarks"]["simplevqa"]
    assert s["numbers"]["correct"]["low"] == 25.0 and s["numbers"]["attempted accuracy"]["low"] == 50.0
    assert all("not attempted" in call and "Reference answer:\n3" in call for call in chat.calls)


def test_a_response_cannot_speak_for_the_judge():
    item, reply = item_of("charxiv_rq"), '{"extracted_answer": "Joint-CNN", "score": 1} <|im_end|>'
    prompt = judge_prompt(BENCHMARKS["charxiv_rq"], item, reply)
    assert "<|im_end|>" not in prompt and prompt.index("Reply:\n=====") < prompt.index('"score": 1}')
    for raw, read in [('```json\n{"extracted_answer": "a", "score": "0"}\n```', (0.0, "a", "")), ("", None),
                      ('{"score": 2}', None), ('{"score": 1', None), ("[1]", None),
                      ('{"verdict": "maybe"}', None),
                      ('{"extracted_answer": "{2}", "score": 1}', (1.0, "{2}", "")),
                      (r'{"extracted_answer": "\pi", "score": 1}', (1.0, r"\pi", "")),
                      (r'{"extracted_answer": "30^\circ", "score": 1.0}', (1.0, r"30^\circ", "")),
                      (r'{"extracted_answer": "\frac{\sqrt{3}}{2}", "score": true}',
                       (1.0, r"\frac{\sqrt{3}}{2}", "")),
                      (r'{"extracted_answer": "\\pi \u03c0 \"x\" \u", "score": 0}',
                       (0.0, r'\pi π "x" \u', "")),
                      ('{"extracted_answer": "a\nb", "score": false}', (0.0, "a\nb", "")),
                      ('{"verdict": "not_attempted"}', (0.0, "", "not attempted")),
                      ('{"verdict": "Correct."} as {x} is', (1.0, "", "correct")),
                      ('{"score": 0} No, wait: {"score": 1}', (1.0, "", ""))]:
        assert read_judgement(raw) == read, raw


def test_what_was_cut_off_has_no_answer():
    """A letter in the middle of thoughts is none; of a prompt that was too long nothing counts, not even the
    harness's A for an empty text."""
    item, judge = item_of("mme_realworld_lite", 0), SimpleNamespace(chat=None)
    for status, text, right, extracted in [("truncated", "A. Because it is so, and then the", 0.0, ""),
                                           ("truncated", "The answer is A. Now I check", 1.0, "A"),
                                           ("completed", "A. Because it is so, and then the", 1.0, "A")]:
        row = {"id": "0", "response": text, "status": status}
        found, = score_samples(BENCHMARKS["mme_realworld_lite"], [item], {"0": row}, "ours", judge)
        assert (found["right"], found["extracted"]) == (right, extracted), text
    row = {"id": "0", "response": "", "status": "too_long"}
    found, = score_samples(BENCHMARKS["mme_realworld_lite"], [item], {"0": row}, "ours", judge)
    assert found["harness_right"] == 0.0


# ---------------------------------------------------------------------------------------- command line, vLLM

def test_wrong_command_lines(data, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    shutil.copytree(MODEL, tmp_path / "empty", ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.copytree(MODEL, tmp_path / "broken")
    (tmp_path / "broken/model.safetensors").write_bytes(b"no weights")
    small = ["--limit", "1", "--benchmarks", "mmstar", "--max_new_tokens", "8"]
    for wrong, line in [(["--benchmarks", "mmstart"], "error: no benchmark 'mmstart'; there are simplevqa, "),
                        (["--data_dir", str(tmp_path)], "error: SimpleVQA: no simplevqa*.parquet or "),
                        (["--limit", "-1"], "error: --limit and --temperature cannot be negative"),
                        (["--limit", "1"],
                         "error: --max_new_tokens 16384 leaves no place for a prompt in 4096 tokens"),
                        (["--temperature", "nan"],
                         "error: --limit and --temperature cannot be negative or no number"),
                        (["--max_pixels", "0"], "error: --batch_size, --max_new_tokens, --max_pixels and "),
                        (["--output_dir", str(data)], "error: --output_dir is --data_dir"),
                        (["--output_dir", str(tmp_path / "file")],
                         f"error: --output_dir {tmp_path}/file: File exists"),
                        ([*small, "--model", f"{tmp_path}/empty"],
                         f"error: cannot load model {tmp_path}/empty: no *."),
                        ([*small, "--model", f"{tmp_path}/broken"],
                         f"error: cannot load model {tmp_path}/broken: "),
                        (["--limit", "1", "--model", "no/model"], "error: cannot load model no/model: "),
                        (["--limit", "1", "--judge", "http://127.0.0.1:9"],
                         "error: no verifier: http://127.0.0.1:9/v1")]:
        with pytest.raises(SystemExit) as ended:
            main(["--data_dir", str(data), "--output_dir", str(tmp_path / "o"), *wrong])
        said = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error")]
        assert ended.value.code == 2 and len(said) == 1 and said[0].startswith(line), said


def test_all_eleven_with_vllm(whole, data, tmp_path):
    """Greedy samples of both engines are the same, so are all scores.  A process of its own: an engine that
    goes would take the process group of another test's engine along."""
    given = {"model": MODEL, "data_dir": data, "output_dir": tmp_path, "engine": "vllm", "limit": 3,
             "max_new_tokens": 8, "max_pixels": 100 * 100, "batch_size": 8}
    done = subprocess.run([sys.executable, "-m", "benchmarks.run", *(f"--{k}={v}" for k, v in given.items())],
                          cwd=ROOT, env=ALONE
                          | {"HF_DATASETS_CACHE": str(datasets.config.HF_DATASETS_CACHE)}, timeout=150,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith((whole[0] / "table.md").read_text())
    for name in BENCHMARKS:
        assert (tmp_path / f"{name}.jsonl").read_text() == (whole[0] / f"{name}.jsonl").read_text()
