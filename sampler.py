"""Two-stage sampling (paper, section 3.2) and the engine that generates.

Stage 1 draws K samples per query.  If every verdict of a query is negative, stage 2 draws one retry per
negative: the policy then sees the query, its own failed response and the mistake report on it.

An engine has four methods: `generate(requests)`, `load_weights(iterator)`, `sleep()` / `wake()`.  `HFEngine`
runs any transformers Qwen-VL model in process: it is the laptop's engine and the oracle for faster ones.

Every request carries its own seeds, made from (run seed, step, query, stage, member) by a stable hash: a
sample can be drawn again without replaying the run, and does not depend on what else is in the batch.

    python sampler.py --model assets/toy --image PICTURE.png --question "how many red plus blue ?"
"""

import argparse
import hashlib
from dataclasses import dataclass
from enum import Enum

import numpy as np
import torch

from data import Prompt, Processor, Query


class SampleStatus(str, Enum):
    COMPLETED = "completed"                        # ended with EOS
    TRUNCATED = "truncated"                        # ran into max_new_tokens


@dataclass
class Sample:
    """One response of the policy.  `ids` are the engine's own and stay what they are."""

    ids: list[int]                                 # response token ids, EOS included
    logprobs: list[float]                          # engine log-prob of each id, under the prompt that was shown
    status: SampleStatus
    text: str                                      # decoded, for people and verifiers
    stage: int = 1


@dataclass
class Request:
    """One prompt, len(seeds) samples."""

    prompt: Prompt
    seeds: list[int]


def seed_of(*key) -> int:
    """Stable 63-bit seed of a key; Python's own hash() is salted per process.

    >>> seed_of(0, 1, "q17", "stage1", 3) == seed_of(0, 1, "q17", "stage1", 3)
    True
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


# ---------------------------------------------------------------------------------------------- the two stages
# Axis letters: _P query (prompt) of the batch, _G member of its group, _T token.

RETRY_WITH_REPORT = "A reviewer found mistakes : {report} . Solve it again from the start . Do not mention the review ."
RETRY_WITHOUT_REPORT = "Your answer is wrong . Solve it again from the start . Do not mention this ."


def retry_message(report: str) -> str:
    """The second user turn of stage 2.  Without a report (none was written, or the ablation) a plain request."""
    return RETRY_WITH_REPORT.format(report=report.rstrip(" .")) if report else RETRY_WITHOUT_REPORT


def stage1(engine, prompts_P: list[Prompt], ids_P: list[str], group_size: int, seed_key: tuple) -> list[list[Sample]]:
    """K samples for each prompt -> samples_P_G."""
    return engine.generate([
        Request(prompt, [seed_of(*seed_key, query_id, "stage1", k) for k in range(group_size)])
        for prompt, query_id in zip(prompts_P, ids_P)])


def stage2(engine, processor: Processor, prompts_P: list[Prompt], ids_P: list[str], failed_P_G: list[list[Sample]],
           reports_P_G: list[list[str]], seed_key: tuple) -> list[list[Sample]]:
    """One retry per failed sample, in the context (query, failed response, report) -> retries_P_G."""
    requests, sizes = [], []
    for prompt, query_id, failed_G, reports_G in zip(prompts_P, ids_P, failed_P_G, reports_P_G, strict=True):
        sizes.append(len(failed_G))
        for k, (failed, report) in enumerate(zip(failed_G, reports_G, strict=True)):
            requests.append(Request(processor.follow_up(prompt, failed.ids, retry_message(report)),
                                    [seed_of(*seed_key, query_id, "stage2", k)]))
    retries = iter(engine.generate(requests))
    retries_P_G = [[next(retries)[0] for _ in range(size)] for size in sizes]
    for retries_G in retries_P_G:
        for retry in retries_G:
            retry.stage = 2
    return retries_P_G


# Mentions of the earlier try or of the review.  The verifier has the paper's cue rule (reward.py); this is
# our second net, a plain text check (the paper names the criterion but not its test).
MENTIONS = ("earlier answer", "previous answer", "previous attempt", "earlier attempt", "previous response",
            "earlier response", "first attempt", "last attempt", "mistake report", "the report", "the review",
            "your review", "reviewer", "as you said", "you pointed out")


def is_independent(text: str) -> bool:
    """True if a retry could have been written without having seen the failed try or the report (section 3.2).

    >>> is_independent("red 3 ; blue 2 ; plus 5 ; \\\\boxed{5}"), is_independent("The reviewer is right : red 3")
    (True, False)
    """
    lowered = text.lower()
    return not any(mention in lowered for mention in MENTIONS)


# ------------------------------------------------------------------------------------------------------ engine

class HFEngine:
    """Batched generation with a transformers model that the trainer also holds: weights are shared, not copied."""

    def __init__(self, model, processor: Processor, temperature: float = 1.0, max_new_tokens: int = 32,
                 max_rows: int = 256):
        self.model, self.processor = model, processor
        self.temperature, self.max_new_tokens, self.max_rows = temperature, max_new_tokens, max_rows
        self.forbidden = torch.tensor(processor.forbidden_ids, device=model.device)

    def load_weights(self, weights) -> None:
        """The model is the trainer's own: nothing to copy."""

    def sleep(self) -> None: ...

    def wake(self) -> None: ...

    def generate(self, requests: list[Request], temperature: float | None = None) -> list[list[Sample]]:
        """Samples for each request, in order.  Temperature 0 is greedy; top_p is 1 (on-policy training needs it)."""
        temperature = self.temperature if temperature is None else temperature
        out, batch, rows = [], [], 0
        for request in requests:
            if batch and rows + len(request.seeds) > self.max_rows:
                out += self._generate(batch, temperature)
                batch, rows = [], 0
            batch.append(request)
            rows += len(request.seeds)
        return out + (self._generate(batch, temperature) if batch else [])

    @torch.no_grad()
    def _generate(self, requests: list[Request], temperature: float) -> list[list[Sample]]:
        from transformers import DynamicCache

        was_training = self.model.training
        self.model.eval()
        device, prompts = self.model.device, [request.prompt for request in requests]
        owner = torch.tensor([i for i, r in enumerate(requests) for _ in r.seeds], device=device)
        # One uniform number per token and row, from the row's own seed: independent of the batch around it.
        uniform_GT = torch.stack([torch.rand(self.max_new_tokens, dtype=torch.float64,
                                             generator=torch.Generator().manual_seed(seed))
                                  for request in requests for seed in request.seeds]).to(device)

        # Prefill each prompt once, left-padded, then repeat its cache for every sample.
        length = max(len(prompt.ids) for prompt in prompts)
        ids = torch.full((len(prompts), length), self.processor.pad_id)
        mask = torch.zeros(len(prompts), length, dtype=torch.long)
        positions = torch.zeros(3, len(prompts), length, dtype=torch.long)
        for i, prompt in enumerate(prompts):
            ids[i, -len(prompt.ids):] = torch.tensor(prompt.ids)
            mask[i, -len(prompt.ids):] = 1
            positions[:, i, -len(prompt.ids):] = torch.from_numpy(prompt.positions)
        pixels = self.processor.pixel_batch([image for prompt in prompts for image in prompt.images])
        cache = DynamicCache(config=self.model.config.text_config)
        logits = self.model(input_ids=ids.to(device), attention_mask=mask.to(device), position_ids=positions.to(device),
                            past_key_values=cache, use_cache=True, logits_to_keep=1,
                            **{k: v.to(device) for k, v in pixels.items()}).logits[:, -1][owner]
        cache.batch_select_indices(owner)
        mask = mask.to(device)[owner]
        position = torch.tensor([prompt.next_position for prompt in prompts], device=device)[owner]

        rows = len(owner)
        tokens_GT = torch.full((rows, self.max_new_tokens), self.processor.pad_id, device=device)
        logps_GT = torch.zeros(rows, self.max_new_tokens, device=device)
        lengths = torch.full((rows,), self.max_new_tokens, device=device)
        done = torch.zeros(rows, dtype=torch.bool, device=device)
        for t in range(self.max_new_tokens):
            logits = logits.float()
            logits[:, self.forbidden] = -torch.inf
            logp = torch.log_softmax(logits / temperature if temperature > 0 else logits, dim=-1)    # [rows, V]
            if temperature > 0:                                 # inverse of the cumulative distribution
                cumulative = logp.double().exp().cumsum(-1)
                token = torch.searchsorted(cumulative, uniform_GT[:, t:t + 1] * cumulative[:, -1:], right=True)
            else:
                token = logp.argmax(-1, keepdim=True)
            tokens_GT[:, t], logps_GT[:, t] = token[:, 0], logp.gather(1, token)[:, 0]
            ends = (token[:, 0] == self.processor.eos_id) & ~done
            lengths[ends] = t + 1
            done |= ends
            if done.all() or t + 1 == self.max_new_tokens:
                break
            mask = torch.cat([mask, mask.new_ones(rows, 1)], dim=1)
            logits = self.model(input_ids=token, attention_mask=mask, past_key_values=cache, use_cache=True,
                                position_ids=position[None, :, None].expand(3, -1, 1)).logits[:, -1]
            position = position + 1
        self.model.train(was_training)

        out, row = [], 0
        for request in requests:
            samples = []
            for _ in request.seeds:
                n = int(lengths[row])
                ids_T = tokens_GT[row, :n].tolist()
                samples.append(Sample(ids_T, logps_GT[row, :n].tolist(),
                                      SampleStatus.COMPLETED if done[row] else SampleStatus.TRUNCATED,
                                      self.processor.decode(ids_T)))
                row += 1
            out.append(samples)
        return out


def main() -> None:
    parser = argparse.ArgumentParser(description="Sample a few answers to one question.")
    parser.add_argument("--model", default="assets/toy")
    parser.add_argument("--image", action="append", default=[])
    parser.add_argument("--question", required=True)
    parser.add_argument("--n", type=int, default=4)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--max_new_tokens", type=int, default=64)
    args = parser.parse_args()
    from transformers import AutoModelForImageTextToText

    processor = Processor(args.model)
    model = AutoModelForImageTextToText.from_pretrained(args.model, dtype=torch.float32)
    engine = HFEngine(model, processor, args.temperature, args.max_new_tokens)
    query = Query("command line", args.image, args.question, "-", "-")
    request = Request(processor.prompt(query), [seed_of("command line", k) for k in range(args.n)])
    for sample in engine.generate([request])[0]:
        print(f"{np.sum(sample.logprobs):8.2f}  {sample.status.value:9s}  {sample.text}")


if __name__ == "__main__":
    main()
