"""OpenAI-compatible servers as the `chat` of a reward.Verifier, through the `openai` client."""

import asyncio
import base64
import io
import json
import os
import random
import re
import threading
import time
from collections import Counter
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path
from urllib.parse import urlsplit

import openai
from PIL import ExifTags, Image, UnidentifiedImageError

from data import PICTURE_ERRORS, as_seen
from reward import VERDICT_SCHEMA, JudgeError
from tools.files import append_rows


class TransientError(JudgeError):
    """An error of the moment: OpenAIChat tries again, not before `wait` seconds."""

    wait = 0.0


CUT_OFF = "verdict cut off at max_tokens"             # name of that JudgeError
TEXT_PARTS = ("text", "output_text")         # of a content that is a list; others are thoughts, refusals


@lru_cache(maxsize=64)                     # a picture is judged with each of its responses
def data_url(image: str | bytes) -> str:
    """A picture in the form of the chat protocol, as the policy sees it: the very bytes of its file if any
    reader makes the same pixels of them, else a PNG of data.as_seen()."""
    try:
        data = image if isinstance(image, bytes) else Path(image).read_bytes()
        with Image.open(io.BytesIO(data)) as picture:
            name = (picture.format or "").lower()
            upright = picture.getexif().get(ExifTags.Base.Orientation, 1) == 1
            if not (name in ("png", "jpeg", "gif", "webp", "bmp") and picture.mode in ("1", "L", "P", "RGB")
                    and upright and "transparency" not in picture.info
                    and getattr(picture, "n_frames", 1) == 1):
                png = io.BytesIO()
                as_seen(picture).save(png, "PNG")
                name, data = "png", png.getvalue()
    except UnidentifiedImageError:
        raise JudgeError("unknown image format") from None
    except PICTURE_ERRORS as error:
        raise JudgeError("image cannot be read", str(error)[:200]) from None
    return f"data:image/{name};base64,{base64.b64encode(data).decode()}"


def openai_messages(messages: list[dict]) -> list[dict]:
    """Messages of reward.judge_messages in the form of the chat protocol."""
    def part(p: dict) -> dict:
        return p if p["type"] == "text" else {"type": "image_url", "image_url": {"url": data_url(p["image"])}}
    return [message | {"content": [part(p) for p in message["content"]]} for message in messages]


@cache
def background_loop() -> asyncio.AbstractEventLoop:
    """One event loop for all requests of this process: a coroutine can be cancelled, so a deadline holds
    however slowly bytes dribble in.  (The client's own time-outs begin anew with every byte.)"""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return loop


class OpenAIChat:
    """chat(messages) -> text by OpenAI-compatible servers, such as `vllm serve Qwen/Qwen3-VL-32B-Instruct`.

    urls          one or several, with commas between; a call goes to the one with the fewest calls in flight,
                  and for max_wait seconds not to one that did not answer
    model         "" = the only one that is served
    timeout       seconds for one attempt, whatever happens
    tries         attempts, after errors of the moment: time-out, reset, 408, 409, 425, 429, 5xx, broken body;
                  any other error is raised at once, a JudgeError with the server's words
    backoff       a pause is drawn from 0 .. min(max_wait, backoff * 2^attempt) seconds (exponential, full
                  jitter); a Retry-After in seconds is respected up to max_wait
    structured    ask for VERDICT_SCHEMA; off for servers without structured output
    log           JSONL file, one row per call

    The environment's OPENAI_API_KEY is sent if it is set; its proxies are not used.  If a judge writes blanks
    until max_tokens, start vLLM with --structured-outputs-config '{"disable_any_whitespace": true, "backend":
    "xgrammar"}'.
    """

    def __init__(self, urls: str, model: str = "", timeout: float = 120.0, tries: int = 4,
                 backoff: float = 1.0, max_wait: float = 30.0, max_tokens: int = 2048,
                 structured: bool = True, log: str = ""):
        self.loop = background_loop()
        self.urls = [checked_url(url.strip().rstrip("/")) for url in urls.split(",")]
        self.model, self.timeout, self.tries = model, timeout, tries
        self.backoff, self.max_wait, self.max_tokens = backoff, max_wait, max_tokens
        self.structured, self.log = structured, log
        self.counts: Counter = Counter()                  # http_retries, prompt_tokens, completion_tokens
        self.in_flight: Counter = Counter()               # by URL
        self.taken: Counter = Counter()
        self.avoid: dict[str, float] = {}                       # URL that failed -> until when
        self.lock, self.starting, self.stopping = threading.Lock(), threading.Lock(), threading.Event()
        key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not re.fullmatch(r"[!-~]*", key):
            raise JudgeError("bad OPENAI_API_KEY", "it has blanks or letters that no header can carry")
        # Connections that were idle for long are not used again: the server may be closing them just now.
        limits = type(openai.DEFAULT_CONNECTION_LIMITS)(max_connections=None, keepalive_expiry=2.0)
        # No retries of the client's own: the next try may be another server's.
        client = openai.AsyncOpenAI(
            api_key=key or "none", base_url=self.urls[0], timeout=timeout, max_retries=0,
            http_client=openai.DefaultAsyncHttpxClient(trust_env=False, follow_redirects=False,
                                                      limits=limits))
        self.clients = {url: client.with_options(base_url=url) for url in self.urls}
        self.headers = {} if key else {"Authorization": openai.omit}

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
                raw = self._ask(self.clients[url].models.with_raw_response.list, min(self.timeout, 10.0))
            except JudgeError as error:
                raise JudgeError("no verifier", f"{url} cannot be asked: {error}") from None
            try:
                served = [str(model["id"]) for model in json.loads(raw)["data"]]
            except (ValueError, LookupError, TypeError):
                raise JudgeError("no verifier", f"{url} does not say which models it serves") from None
            if not self.model and len(served) == 1:
                self.model = served[0]
            if self.model not in served:
                what = f"not {self.model!r}" if self.model else "name the one to ask"
                raise JudgeError("no verifier", f"{url} serves {', '.join(served) or 'nothing'}: {what}")

    def __call__(self, messages: list[dict]) -> str:
        """One verdict, greedy."""
        schema = {"name": "verdict", "strict": True, "schema": VERDICT_SCHEMA}
        form = {"response_format": {"type": "json_schema", "json_schema": schema}} if self.structured else {}
        return self.complete(messages, temperature=0, **form)

    def complete(self, messages: list[dict], **sampling) -> str:
        """Text of one chat completion, after as many tries as it takes.  `sampling`: further arguments of
        the chat protocol (temperature, seed, ...)."""
        with self.starting:
            if not self.model:
                self.check()
        request = {"model": self.model, "max_tokens": self.max_tokens, "messages": openai_messages(messages),
                   **sampling}
        row, start = {"time": time.time(), "prompt_tokens": 0, "completion_tokens": 0}, time.monotonic()
        for attempt in range(self.tries):
            url, text, error = self._take(), "", None
            try:
                create = self.clients[url].chat.completions.with_raw_response.create
                text = read_completion(self._ask(create, self.timeout, **request), row)
            except JudgeError as problem:
                error = problem
            finally:
                # A server that says it is busy is there: it keeps its share.
                dead = isinstance(error, TransientError) and not error.name.startswith("HTTP 4")
                self._give_back(url, failed=dead)
            if (not isinstance(error, TransientError) or attempt == self.tries - 1
                    or self.stopping.is_set()):
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
                append_rows(Path(self.log), [row])
        if error:
            raise error
        return text

    def _take(self) -> str:
        with self.lock:
            now = time.monotonic()
            url = min(self.urls, key=lambda u: (now < self.avoid.get(u, 0), self.in_flight[u], self.taken[u]))
            if url in self.avoid:                         # only one call at a time finds out if it is back
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

    def _ask(self, method, timeout: float, **arguments) -> bytes:
        """Body of the answer if its status is 200; else JudgeError, a TransientError if it may go away."""
        async def ask() -> bytes:
            async with asyncio.timeout(timeout):
                return (await method(**arguments, extra_headers=self.headers)).http_response.content

        try:
            return asyncio.run_coroutine_threadsafe(ask(), self.loop).result()
        except (TimeoutError, openai.APITimeoutError):
            raise TransientError("TimeoutError", f"no answer in {timeout:g} s") from None
        except openai.APIConnectionError as error:
            raise TransientError(connection_problem(error), str(error.__cause__ or error)[:200]) from None
        except openai.APIStatusError as error:
            status = error.status_code
            kind = TransientError if status in (408, 409, 425, 429) or status >= 500 else JudgeError
            problem = kind(f"HTTP {status}", server_message(error.response.content))
            seconds = error.response.headers.get("Retry-After", "")
            if isinstance(problem, TransientError) and re.fullmatch("[0-9]{1,6}", seconds):
                problem.wait = float(seconds)
            raise problem from None


def checked_url(url: str) -> str:
    """With /v1 if it has no path."""
    form = re.fullmatch(r"https?://(?:[\w.-]+|\[[0-9a-fA-F:.]+\])(?::(\d{1,5}))?(?:/[\w./~-]*)?", url)
    if not form or int(form[1] or 0) > 65535:
        raise JudgeError("bad URL", f"{url!r} is not like http://host:8000 or https://host/v1")
    return url if urlsplit(url).path else f"{url}/v1"


def connection_problem(error: Exception) -> str:
    """A short, stable name for what the client's transport met; its exceptions are told apart by name."""
    chain: list[BaseException] = [error]
    while chain[-1].__cause__ or chain[-1].__context__:
        chain.append(chain[-1].__cause__ or chain[-1].__context__)        # type: ignore[arg-type]
    names, text = [type(e).__name__ for e in chain], str(chain)
    if "ConnectionRefusedError" in names or "refused" in text.lower():
        return "connection refused"
    if "incomplete" in text:
        return "half an answer"
    if "ConnectError" in names:
        return "cannot connect"
    return "connection reset"


def server_message(raw: bytes) -> str:
    """The first 200 characters of what a server says of an error, on one line."""
    text = raw.decode("utf-8", "replace")
    with suppress(ValueError, LookupError, TypeError):
        text = str(json.loads(text)["error"]["message"])
    return " ".join(text.split())[:200]


def read_completion(raw: bytes, usage: dict) -> str:
    """Text of a chat completion, or of a plain one; its token counts go into `usage`, 0 where none is told.

    Thoughts are no answer.  A server that takes the whole answer for a thought (a reasoning parser, and a
    model that does not think) is known by its one JSON object.
    """
    if not raw.strip():
        raise TransientError("empty answer")
    try:
        answer = json.loads(raw)
    except (ValueError, RecursionError):
        raise TransientError("half an answer", server_message(raw)) from None
    try:
        choice = answer["choices"][0]
        message = choice["message"] if choice.get("message") is not None else {"content": choice.get("text")}
        text, refusal = message.get("content"), message.get("refusal")
        thoughts = [message.get(name) for name in ("reasoning_content", "reasoning")]
        thought = next((part.strip() for part in thoughts if isinstance(part, str) and part.strip()), "")
        if isinstance(text, list):
            refusal = refusal or "".join(part.get("refusal") or "" for part in text)
            text = "".join(part["text"] for part in text if part.get("type", "text") in TEXT_PARTS)
        if not isinstance(text, str | None):
            raise TypeError
    except (LookupError, TypeError, AttributeError):
        raise TransientError("not a chat answer", server_message(raw)) from None
    for name in ("prompt_tokens", "completion_tokens"):
        usage[name] = 0
        with suppress(LookupError, TypeError, ValueError, OverflowError):                 # missing, null, NaN
            usage[name] = int(answer["usage"][name])
    if choice.get("finish_reason") in ("length", "max_tokens"):
        raise JudgeError(CUT_OFF)
    if refusal and not (text or "").strip():
        raise JudgeError("refused", str(refusal)[:200])
    if thought and not (text or "").strip():
        if not (thought[0] == "{" and thought[-1] == "}"):
            raise JudgeError("thoughts without an answer", " ".join(thought.split())[:200])
        text = thought
    if text is None:
        raise JudgeError("answer without a text", server_message(raw))
    return text
