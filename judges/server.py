"""OpenAI-compatible servers as the `chat` of a reward.Verifier."""

import base64
import io
import json
import math
import os
import random
import re
import socket
import threading
import time
from collections import Counter
from contextlib import suppress
from functools import lru_cache
from http.client import HTTPConnection, HTTPException, HTTPSConnection, IncompleteRead
from pathlib import Path
from urllib.parse import urlsplit

from PIL import Image, UnidentifiedImageError

from data import as_seen
from reward import VERDICT_SCHEMA, JudgeError


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


def openai_messages(messages: list[dict]) -> list[dict]:
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
        request = {"model": self.model, "temperature": 0, "max_tokens": self.max_tokens, "messages": openai_messages(messages)}
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
