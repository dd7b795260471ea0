"""An OpenAI-compatible server of the built-in world's exact verifier, which misbehaves as real servers do.

    python tests/judge_server.py --port 8000 --misbehave 0.3 --delay 0.5-2 --seed 0

Like a vision model it gets pictures and a prompt, nothing else: it knows a picture by its bytes and reads
question and response in the text.  How a call goes wrong is drawn from (seed, request, how often it came
before), so the order in which threads ask changes nothing.  GET /stats tells what it did.  Images that
changed on the way are answered by 400.
"""

import argparse
import base64
import hashlib
import json
import os
import random
import socket
import struct
import sys
import threading
import time
from collections import Counter
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import toy

MODEL = "exact-judge"
MODES = ("hang", "dribble", "reset", "500", "429", "empty", "half envelope", "half content", "wrong envelope",
         "wrong types", "other keys", "yes", "inconsistent")
# Not drawn unless named: "slow headers", modes of PLACES, COUNTS, NO_TEXT, any other HTTP status as digits.


@lru_cache
def known_queries() -> dict:
    return {(hashlib.sha256(query.images[0]).hexdigest(), query.question): query
            for query in [*toy.train_queries(), *toy.heldout_queries()]}


def verdict_text(verdict) -> str:
    return json.dumps({"Analysis": "judged by the facts", "Self-Consistency": int(verdict.consistent),
                       "Correctness": int(verdict.correct), "Mistake Report": verdict.report})


# What the model says; the envelope around it is sound.
LIES = {"half content": lambda text: text[:len(text) // 2],
        "wrong types": lambda text: json.dumps(json.loads(text) | {"Correctness": [1], "Analysis": 5}),
        "other keys": lambda text: json.dumps({"verdict": "correct", "score": 1}),
        "yes": lambda text: json.dumps(json.loads(text) | {"Correctness": "yes"}),
        "inconsistent": lambda text: json.dumps(json.loads(text) | {"Correctness": 1, "Self-Consistency": 0})}


def halves(text: str) -> list[dict]:
    return [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": text[:20]},
            {"type": "output_text", "text": text[20:]}]


# Where servers put the text: what the one choice is.
PLACES = {"parts": lambda text: {"message": {"content": halves(text)}},
          "thoughts beside it": lambda text: {"message": {"content": text, "reasoning_content": "It is {"}},
          "other thoughts beside it": lambda text: {"message": {"content": text, "reasoning": {"effort": 1}}},
          "all of it as a thought": lambda text: {"message": {"content": None, "reasoning_content": text}},
          "all of it as reasoning": lambda text: {"message": {"content": "", "reasoning": f"\n{text}\n"}},
          "plain completion": lambda text: {"text": text, "finish_reason": "stop"},
          "plain completion and a null": lambda text: {"text": text, "message": None},
          "no reason to finish": lambda text: {"message": {"content": text, "refusal": None}}}
# How they count, and how many prompt tokens that is.
COUNTS = {"no usage": (None, 0), "usage is a list": ([], 0), "null counts": ({"prompt_tokens": None}, 0),
          "one count": ({"prompt_tokens": 7}, 7), "floats": ({"prompt_tokens": 7.0}, 7),
          "NaN": ({"prompt_tokens": float("nan"), "completion_tokens": float("inf")}, 0),
          "words": ({"prompt_tokens": "7", "completion_tokens": "many"}, 7)}
# Nothing was answered.
NO_TEXT = {"cut off": lambda text: {"message": {"content": text}, "finish_reason": "length"},
           "cut off in thought": lambda text: {"message": {"content": None, "reasoning_content": text},
                                               "finish_reason": "length"},
           "cut off at nothing": lambda text: {"message": None, "finish_reason": "length"},
           "refused": lambda text: {"message": {"content": None, "refusal": "I cannot look at this."}},
           "refused in parts": lambda text: {"message": {"content": [{"type": "refusal", "refusal": "No."}]}},
           "thoughts": lambda text: {"message": {"content": None, "reasoning_content": f"Maybe {text}"}},
           "reasoning": lambda text: {"message": {"content": "\n\n", "reasoning": f"{text} or not"}},
           "a tool": lambda text: {"message": {"content": None, "tool_calls": [{"id": "x"}]}}}


class JudgeServer(ThreadingHTTPServer):
    """`misbehave`: share of calls; `delay`: seconds, drawn between the two; `hang`: seconds of a call that
    hangs.

    `times`: how often one question and response may go wrong; 1 = whoever asks again is answered.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int = 0, misbehave: float = 0.0, modes=MODES, delay=(0.0, 0.0), seed: int = 0,
                 hang: float = 60.0, times: float = float("inf"), models=(MODEL,),
                 retry_after: int = 1):
        super().__init__(("127.0.0.1", port), Handler)
        self.misbehave, self.modes, self.delay, self.seed, self.hang = misbehave, modes, delay, seed, hang
        self.times, self.models, self.retry_after = times, models, retry_after
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.stats, self.seen, self.lock, self.in_flight = Counter(), Counter(), threading.Lock(), 0
        self.requests: list[dict] = []                              # as received, for tests
        self.queries = known_queries()

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        self.server_close()

    def server_close(self):
        self.socket.close()                                         # without waiting for calls that hang

    def handle_error(self, request, address):
        if not isinstance(sys.exception(), ConnectionError):       # a client that gave up is no error of ours
            super().handle_error(request, address)


class Handler(BaseHTTPRequestHandler):

    def log_message(self, *text):
        pass

    def reply(self, status: int, value: dict | bytes, **headers: str) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path == "/stats":
            self.reply(200, self.server.stats)
        elif self.path == "/v1/models":
            self.reply(200, {"object": "list", "data": [{"id": model} for model in self.server.models]})
        else:
            self.reply(404, {"error": {"message": f"no such path: {self.path}"}})

    def do_POST(self):
        server = self.server
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.in_flight += 1
            server.stats["calls"] += 1
            server.stats["max_in_flight"] = max(server.stats["max_in_flight"], server.in_flight)
            asked = toy.read_judge_prompt(request["messages"][0]["content"][-1]["text"])
            before = server.seen[asked]
            server.seen[asked] += 1
            server.requests.append({"path": self.path, "headers": dict(self.headers), "body": request})
        rng = random.Random(f"{server.seed} {before} {asked}")
        misbehaves = before < server.times and rng.random() < server.misbehave
        mode = rng.choice(server.modes) if misbehaves else "sound"
        with server.lock:
            server.stats[mode] += 1
        time.sleep(rng.uniform(*server.delay))
        with server.lock:                               # before the answer: its reader may call at once
            server.in_flight -= 1
        self.answer(request, mode)

    def answer(self, request: dict, mode: str) -> None:
        if (model := request.get("model")) != MODEL:
            return self.reply(404, {"error": {"message": f"The model `{model}` does not exist."}})
        *pictures, text = request["messages"][0]["content"]
        urls = [part["image_url"]["url"] for part in pictures]
        images = [base64.b64decode(url.partition(",")[2]) for url in urls]
        question, response = toy.read_judge_prompt(text["text"])
        query = self.server.queries.get((hashlib.sha256(images[0]).hexdigest() if images else "", question))
        if query is None or not all(url.startswith("data:image/png;base64,") for url in urls):
            return self.reply(400, {"error": {"message": f"unknown picture for the question {question!r}"}})
        content = verdict_text(toy.ToyVerifier().judge_one(query, response))
        content = LIES.get(mode, str)(content)
        usage = {"prompt_tokens": len(text["text"].split()), "completion_tokens": len(content.split())}
        usage = COUNTS.get(mode, (usage,))[0]
        sound = {"finish_reason": "stop", "message": {"role": "assistant", "content": content}}
        choice = (PLACES | NO_TEXT)[mode](content) if mode in PLACES | NO_TEXT else sound
        envelope = json.dumps({"id": "x", "object": "chat.completion", "model": MODEL, "choices": [choice],
                               **({} if usage is None else {"usage": usage})}).encode()
        if mode == "hang":
            time.sleep(self.server.hang)
        elif mode == "dribble":                         # each byte comes in time, the whole never does
            self.send_response(200)
            self.send_header("Content-Length", str(len(envelope)))
            self.end_headers()
            for i in range(int(self.server.hang / 0.05)):
                self.wfile.write(envelope[i:i + 1])
                time.sleep(0.05)
        elif mode == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())
        elif mode == "slow headers":
            for i in range(int(self.server.hang / 0.05)):
                self.wfile.write(b"HTTP/1.1 200 OK\r\n" if i == 0 else f"X-{i}: y\r\n".encode())
                time.sleep(0.05)
        elif mode == "429":
            wait = str(self.server.retry_after)
            self.reply(429, {"error": {"message": "too many requests"}}, Retry_After=wait)
        elif mode.isdigit():
            self.reply(int(mode), {"error": {"message": "CUDA error:\n out of memory, " + 300 * "x"}})
        elif mode == "empty":
            self.reply(200, b"")
        elif mode == "half envelope":
            self.reply(200, envelope[:len(envelope) // 2])
        elif mode == "wrong envelope":
            self.reply(200, {"choices": [{"message": "fine"}]})
        else:
            self.reply(200, envelope)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--misbehave", type=float, default=0.0, help="share of the calls that go wrong")
    parser.add_argument("--modes", default=",".join(MODES), help="how; default: %(default)s")
    parser.add_argument("--delay", default="0-0", help="seconds, drawn between the two")
    parser.add_argument("--hang", type=float, default=60.0, help="seconds of a call that hangs or dribbles")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    low, _, high = args.delay.partition("-")
    delay = (float(low), float(high or low))
    modes = args.modes.split(",")
    with JudgeServer(args.port, args.misbehave, modes, delay, args.seed, args.hang) as server:
        print(f"{server.url} serves {MODEL}", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print(json.dumps(server.stats))


if __name__ == "__main__":
    main()
