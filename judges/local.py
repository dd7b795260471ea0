"""A judge model on the policy's GPU, in a process of its own: the `chat` of a reward.Verifier."""

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from queue import SimpleQueue

import torch

from data import DataError
from judges.server import CUT_OFF, openai_messages
from reward import VERDICT_SCHEMA, JudgeError, VerifierUnreliable


class LocalChat:
    """A judge model on this rank's GPU, in a process of its own: it sleeps while the policy's engine is awake
    and the other way round, so each may have most of the memory.  (vLLM's sleep mode serves one engine per
    process.)

    Answers are greedy, of up to max_tokens, JSON of `schema`.  The process is this file (`serve` below), one
    line of JSON per batch each way.  It ends when its input does, so also with us.
    """

    def __init__(self, model: str, max_context: int = 8192, max_tokens: int = 2048, memory_share: float = 0.8,
                 schema: dict = VERDICT_SCHEMA):
        self.model, self.policy_engine, self.counts = model, None, Counter()
        self.settings = {"max_context": max_context, "max_tokens": max_tokens, "memory_share": memory_share,
                         "schema": schema}

    def start(self, policy_engine) -> None:
        """Starts the process while `policy_engine`, which has sleep() and wake(), sleeps."""
        local = int(os.environ.get("LOCAL_RANK", 0))
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(local + 1)))
        # It must not take itself for a rank of the training.
        of_rank = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        environment = {name: value for name, value in os.environ.items()
                       if not (name in of_rank or name.startswith("TORCHELASTIC"))}
        root = str(Path(__file__).resolve().parent.parent)
        environment |= {"CUDA_VISIBLE_DEVICES": visible.split(",")[local],
                        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
                        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
        self.policy_engine = policy_engine
        policy_engine.sleep()
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "judges.local", self.model, json.dumps(self.settings)],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8",
            start_new_session=True)                      # Ctrl-C is for the run, which ends it
        try:
            self._answer()
        except VerifierUnreliable as error:
            raise DataError(f"cannot start the judge {self.model}: {error}") from None
        policy_engine.wake()

    def batch(self, conversations: list[list[dict]]) -> list[str | JudgeError]:
        """One answer to each, in order.  The policy's engine sleeps meanwhile."""
        asked, answers = [], []
        for messages in conversations:
            try:
                asked.append(openai_messages(messages))
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
        except KeyboardInterrupt:                      # it would go on to the end of its batch
            self.process.kill()
            self.process.wait()
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
            code = self.process.wait(timeout=60)
            raise VerifierUnreliable(f"the judge's process has ended with exit code {code}")
        return json.loads(line)


def serve(model: str, max_context: int, max_tokens: int, memory_share: float, schema: dict) -> None:
    """The other end: sleeps; for each line of conversations it wakes and answers [[text, error, tokens,
    tokens]]."""
    batches: SimpleQueue = SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            batches.put(json.loads(line))
        os._exit(0)                # the run has ended: also while we load, or in the middle of a batch

    threading.Thread(target=listen, daemon=True).start()
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)                                       # whatever else prints does not print to the policy
    for name, value in (("VLLM_CPU_KVCACHE_SPACE", "1"), ("VLLM_LOGGING_LEVEL", "ERROR")):
        os.environ.setdefault(name, value)
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    # No blanks of its own choice in the JSON: a small model can go on writing them until it runs out of
    # tokens.
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
        cut = [CUT_OFF]
        return [[end.text, cut if end.finish_reason == "length" else None, len(o.prompt_token_ids),
                 len(end.token_ids)] for o in outputs for end in o.outputs]

    llm.sleep(level=1)
    print("[]", file=replies, flush=True)                       # ready
    while True:
        conversations = batches.get()
        llm.wake_up()
        answers = answer(conversations)
        llm.sleep(level=1)
        print(json.dumps(answers), file=replies, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], **json.loads(sys.argv[2]))
