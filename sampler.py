"""Two-stage sampling (paper, section 3.2) and the engine that generates.

Stage 1 draws K samples per query: sample().  If every verdict of a query is negative, stage 2 draws one retry
per negative, which sees the query, its own failed response and the mistake report on it: resample().

`Engine` lists what an engine must do.  `HFEngine` runs any transformers Qwen-VL model in process: it is the
laptop's engine, and what faster ones are tested against.  `VLLMEngine` is the fast one; it also takes single
samples while others are running, so that both stages and the judge can be one continuous batch
(training/continuous.py).

Every request carries its own seeds, made from (run seed, step, query, stage, member) by a stable hash: a
sample can be drawn again without replaying the run, and does not depend on what else is in the batch.

    python sampler.py MODEL QUESTION [PICTURE ...]        samples a few answers to one question
"""

import hashlib
import math
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import StrEnum
from typing import Any, Protocol

import torch
import torch.distributed as dist
from safetensors import SafetensorError

from data import DataError, Processor, Prompt, Query, load_model


class SampleStatus(StrEnum):
    COMPLETED = "completed"                        # ended with EOS
    TRUNCATED = "truncated"                        # ran into max_new_tokens
    TOO_LONG = "too_long"                          # not sampled: the prompt leaves less than max_new_tokens


@dataclass
class Sample:
    """One response of the policy.  `ids` are the engine's own and stay what they are."""

    ids: list[int]                             # response token ids, EOS included
    logprobs: list[float]                      # engine log-prob of each id, under the prompt that was shown
    status: SampleStatus
    text: str                                      # decoded, for people and verifiers
    stage: int = 1


@dataclass
class Request:
    """One prompt, len(seeds) samples."""

    prompt: Prompt
    seeds: list[int]


@dataclass
class Rollout:
    """What happens to one query in one step, filled in from top to bottom; `_G`: over group members."""

    query: Query
    prompt: Prompt
    name: str                                                   # keys its seeds: unique within a step
    samples_G: list[Sample] = field(default_factory=list)       # stage 1
    verdicts_G: list = field(default_factory=list)              # reward.Verdict of each
    retries_G: list[Sample] = field(default_factory=list)       # stage 2, if any: retry k answers sample k
    retry_verdicts_G: list = field(default_factory=list)
    kept_G: list[bool] = field(default_factory=list)            # verified and independent: rolled back
    group: Any = None                                           # grpo.Group: what is trained on

    @property
    def hard(self) -> bool:
        """Every verdict is there and negative: a failed judge must not look like a hard query."""
        return all(v.reward is not None and not v.correct for v in self.verdicts_G)


def seed_of(*key) -> int:
    """Stable 63-bit seed of a key; Python's own hash() is salted per process.

    >>> seed_of(0, 1, "q17", "stage1", 3) == seed_of(0, 1, "q17", "stage1", 3)
    True
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class Engine(Protocol):
    """What the loop asks of an engine; HFEngine is the shortest example.  One that also has add(), step(),
    busy and abort(), as VLLMEngine, runs both stages and the judge as one continuous batch.

    A sample's ids end at processor.eos_id and nowhere else, never hold one of processor.forbidden_ids, and
    come with the log-probs of the distribution they were drawn from (temperature and forbidden ids applied).
    The model has to see exactly prompt.ids, and pictures as processor.picture makes them, not resized again.
    """

    processor: Processor
    replica: int              # this process samples queries[replica::replicas]
    replicas: int
    leader: bool              # the one process of a replica that asks judges (tensor parallel: several
                              # processes, which make the same calls in the same order)

    def generate(self, requests: list[Request], temperature: float | None = None) -> list[list[Sample]]:
        """len(seeds) samples for each request, in order, also if the engine sleeps; too_long() for a prompt
        that leaves no room.  Temperature 0 is greedy, None the engine's own; top_p is 1."""

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """New weights under their transformers names, a tied head too: goes through all of them on every
        rank, and forgets what the old ones computed (caches).  The engine is awake afterwards."""

    def share(self, value):
        """The leader's value, on all processes of the replica."""

    def sleep(self) -> None:
        """Gives the GPU's memory to the trainer, or to a judge, until wake() or new weights."""

    def wake(self) -> None: ...


# --------------------------------------------------------------------------------------------- the two stages
# Axis letters: _P query (prompt) of the batch, _G member of its group, _T token.

def sample(engine: Engine, rollouts_P: list[Rollout], group_size: int, seed_key: tuple) -> None:
    """Stage 1: fills samples_G with K samples of each query."""
    requests = [Request(r.prompt, [seed_of(*seed_key, r.name, "stage1", k) for k in range(group_size)])
                for r in rollouts_P]
    for rollout, samples_G in zip(rollouts_P, engine.generate(requests), strict=True):
        rollout.samples_G = samples_G


def resample(engine: Engine, rollouts_P: list[Rollout], messages_P_G: list[list[str]], seed_key: tuple,
             ) -> None:
    """Stage 2: fills retries_G, one retry per message in the context (query, failed response, message)."""
    requests = [Request(engine.processor.follow_up(r.prompt, failed.ids, message),
                        [seed_of(*seed_key, r.name, "stage2", k)])
                for r, messages_G in zip(rollouts_P, messages_P_G, strict=True)
                for k, (failed, message) in enumerate(zip(r.samples_G, messages_G, strict=True))]
    retries = iter(engine.generate(requests))
    for rollout, messages_G in zip(rollouts_P, messages_P_G, strict=True):
        rollout.retries_G = [replace(next(retries)[0], stage=2) for _ in messages_G]


def on_leader(engine, work: Callable):
    """work() on the first rank of a tensor-parallel group; its value or exception on all of them."""
    value, error = None, None
    if engine.leader:
        try:
            value = work()
        except Exception as problem:    # raised again below, here and on the other ranks: none waits for ever
            error = problem
    value, error = engine.share((value, error))
    if error is not None:
        raise error
    return value


# ---------------------------------------------------------------------------------------------------- engines
def rank_and_world() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


NOT_FINITE = "the policy's log-probs are not finite: its weights hold NaN or infinity"


def too_long() -> Sample:
    return Sample([], [], SampleStatus.TOO_LONG, "")


class HFEngine:
    """Batched generation with a transformers model, the trainer's own (weights are shared then) or a copy."""

    leader = True

    def __init__(self, model, processor: Processor, temperature: float = 1.0, max_new_tokens: int = 32,
                 max_rows: int = 256):
        self.model, self.processor = model, processor
        self.temperature, self.max_new_tokens, self.max_rows = temperature, max_new_tokens, max_rows
        self.forbidden = torch.tensor(processor.forbidden_ids, device=model.device)
        self.replica, self.replicas = rank_and_world()
        context = model.config.text_config.max_position_embeddings
        if max_new_tokens >= context:
            raise DataError(f"{max_new_tokens} new tokens leave no room in a context of {context}")
        self.limit = context - max_new_tokens                           # of a prompt

    @torch.no_grad()
    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Copies each tensor, unless it is the model's very own.  A tied head may be left out."""
        own = self.model.state_dict()
        for name, weight in weights:
            if own[name].data_ptr() != weight.data_ptr():
                own[name].copy_(weight)

    def share(self, value):
        return value

    def sleep(self) -> None: ...

    def wake(self) -> None: ...

    def generate(self, requests: list[Request], temperature: float | None = None) -> list[list[Sample]]:
        temperature = self.temperature if temperature is None else temperature
        batches: list[list[Request]] = [[]]
        for request in (r for r in requests if len(r.prompt.ids) <= self.limit):
            if sum(len(r.seeds) for r in [*batches[-1], request]) > self.max_rows and batches[-1]:
                batches.append([])
            batches[-1].append(request)
        drawn = iter([samples for batch in filter(None, batches)
                      for samples in self._generate(batch, temperature)])
        return [next(drawn) if len(request.prompt.ids) <= self.limit else [too_long() for _ in request.seeds]
                for request in requests]

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
        arguments = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, **pixels}
        logits = self.model(**{k: v.to(device) for k, v in arguments.items()}, past_key_values=cache,
                            use_cache=True, logits_to_keep=1).logits[:, -1][owner]
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
            logp = torch.log_softmax(logits / temperature if temperature > 0 else logits, dim=-1)  # [rows, V]
            if logp.isnan().any():
                raise FloatingPointError(NOT_FINITE)
            if temperature > 0:                                 # inverse of the cumulative distribution
                cumulative = logp.double().exp().cumsum(-1)
                drawn = uniform_GT[:, t:t + 1] * cumulative[:, -1:]
                token = torch.searchsorted(cumulative, drawn, right=True)
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


class VLLMEngine:
    """vLLM in the training process: on one device, or inside each torchrun rank (torch.distributed
    initialised first).

    `tensor_parallel` ranks in a row hold one model together; they must make the same calls in the same order.
    `memory_share` of the device is the engine's while it is awake.  A prompt is sampled if it leaves
    max_new_tokens of `max_context`, else its samples are TOO_LONG.  Only one engine of a process can sleep:
    vLLM's CUDA allocator.
    """

    def __init__(self, model: str, processor: Processor, temperature: float = 1.0, max_new_tokens: int = 32,
                 max_context: int = 4096, tensor_parallel: int = 1, memory_share: float = 0.5,
                 max_rows: int = 256, dtype: str = "auto"):
        cuda = torch.cuda.is_available()
        for name, value in [("VLLM_ENABLE_V1_MULTIPROCESSING", "0"), ("VLLM_LOGGING_LEVEL", "ERROR"),
                            ("VLLM_CPU_KVCACHE_SPACE", "1")]:
            os.environ.setdefault(name, value)
        from vllm import LLM

        self.processor, self.temperature = processor, temperature
        self.max_new_tokens, self.max_context = max_new_tokens, max_context
        if len(processor.forbidden_ids) > 1024:
            raise ValueError(f"{len(processor.forbidden_ids)} ids may not be sampled, vLLM can forbid 1024")
        rank, world = rank_and_world()
        if world % tensor_parallel:
            raise ValueError(f"{world} process(es) cannot form groups of {tensor_parallel}: use torchrun")
        self.replica, self.replicas = rank // tensor_parallel, world // tensor_parallel
        self.first, self.group = self.replica * tensor_parallel, None
        self.leader = rank == self.first
        if tensor_parallel > 1:    # CPU messages, so that nothing waits for the device; a judge may take long
            groups = [dist.new_group(range(first, first + tensor_parallel), timedelta(hours=6), "gloo")
                      for first in range(0, world, tensor_parallel)]
            self.group = groups[self.replica]
        # On CPU prompts stay whole: a seeded request whose prefill is split cannot rewind its generator.
        device = {"gpu_memory_utilization": memory_share, "enable_sleep_mode": True} if cuda else {
            "enforce_eager": True, "block_size": 32, "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(max_context, max_rows)}
        # Keep this reference until the process ends: a deleted LLM destroys the default process group.
        self.llm = LLM(
            model=model, dtype=("bfloat16" if cuda else "float32") if dtype == "auto" else dtype, seed=0,
            tensor_parallel_size=tensor_parallel, max_model_len=max_context, max_num_seqs=max_rows,
            distributed_executor_backend="external_launcher" if world > 1 else None,
            logprobs_mode="processed_logprobs",    # of the distribution sampled from, forbidden ids left out
            async_scheduling=False,                # as on CPU: a step returns what it finished
            limit_mm_per_prompt={"video": 0},
            # Pictures arrive at their final size (Processor.picture); the bounds only say how much memory
            # they need.
            mm_processor_kwargs={"do_resize": False, "size": dict(processor.image_processor.size)}, **device)
        self.engine: Any = self.llm.llm_engine
        self.asleep: list[str] = []
        self.keys: dict[str, tuple] = {}                    # request name -> key
        self.finished: list[tuple[tuple, Sample]] = []      # done without the engine
        self.added = 0
        self.rendered: tuple[Any, Any] = (None, None)       # the last prompt, and vLLM's form of it

    # ------------------------------------------------------------------------------------------------ samples

    @property
    def busy(self) -> bool:
        return bool(self.finished) or self.engine.has_unfinished_requests()

    def add(self, key: tuple, prompt: Prompt, seed: int, temperature: float | None = None) -> None:
        """Queues one sample, also while others are running; wakes a sleeping engine."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        self.wake()
        if len(prompt.ids) + self.max_new_tokens > self.max_context:    # vLLM would shorten the response
            self.finished.append((key, too_long()))
            return
        if self.rendered[0] is not prompt:                              # once for the K samples of a query
            self.rendered = (prompt, self._render(prompt))
        params = SamplingParams(
            temperature=self.temperature if temperature is None else temperature, seed=seed,
            max_tokens=self.max_new_tokens, logprobs=0, detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            # ignore_eos and then our own: generation_config.json may name further ids that end a response.
            # Its top_p, top_k and penalties are defaults for requests without parameters, not for these.
            ignore_eos=True, stop_token_ids=[self.processor.eos_id],
            # The one mask that both of vLLM's model runners take for a real vocabulary (up to 1024 ids, as
            # many as a list of ALLOWED ids may have).  -inf is impossible at any temperature; its HTTP server
            # clamps at -100.
            logit_bias=dict.fromkeys(self.processor.forbidden_ids, -math.inf))
        name = str(self.added)
        self.engine.add_request(name, dict(self.rendered[1]), params)
        self.keys[name] = key
        self.added += 1

    def _render(self, prompt: Prompt) -> dict:
        """vLLM expands placeholders of images by itself, and has to come to the trainer's ids."""
        from vllm.renderers.inputs.preprocess import parse_model_prompt

        image_id = self.processor.image_id
        ids = [b for a, b in zip([None, *prompt.ids], prompt.ids) if b != image_id or a != image_id]
        given: dict[str, Any] = {"prompt_token_ids": ids}
        if prompt.images:                         # named by content: hashed once, and never taken for another
            pictures = [self.processor.picture(image) for image in prompt.images]
            given |= {"multi_modal_data": {"image": pictures},
                      "multi_modal_uuids": {"image": [picture.info["content"] for picture in pictures]}}
        renderer = self.engine.renderer
        rendered, = renderer.render_cmpl([parse_model_prompt(self.engine.model_config, given)],
                                         renderer.default_cmpl_tok_params)
        if list(rendered["prompt_token_ids"]) != prompt.ids:
            raise RuntimeError(f"vLLM makes {len(rendered['prompt_token_ids'])} ids of a prompt of "
                               f"{len(prompt.ids)}: engine and trainer do not see the same image tokens")
        return rendered

    def step(self) -> list[tuple[tuple, Sample]]:
        """One token for every running sample -> [(key, sample)] of those that ended; often []."""
        out, self.finished = self.finished, []
        with torch._dynamo.config.patch(disable=not torch.cuda.is_available()):     # takes 15 s on CPU
            outputs = self.engine.step() if self.engine.has_unfinished_requests() else []
        for output in outputs:
            end, = output.outputs
            ids, key = list(end.token_ids), self.keys.pop(output.request_id)
            if end.finish_reason not in ("stop", "length"):
                raise RuntimeError(f"vLLM ended a response with {end.finish_reason!r}")
            status = SampleStatus.COMPLETED if end.finish_reason == "stop" else SampleStatus.TRUNCATED
            logprobs = [position[token].logprob for token, position in zip(ids, end.logprobs, strict=True)]
            if not all(map(math.isfinite, logprobs)):
                raise FloatingPointError(NOT_FINITE)
            out.append((key, Sample(ids, logprobs, status, self.processor.decode(ids))))
        return out

    def generate(self, requests: list[Request], temperature: float | None = None) -> list[list[Sample]]:
        if self.busy:
            raise RuntimeError("generate() while samples of add() are running")
        samples: dict[tuple, Sample] = {}
        try:
            for i, request in enumerate(requests):
                for k, seed in enumerate(request.seeds):
                    self.add((i, k), request.prompt, seed, temperature)
            while self.busy:
                samples.update(self.step())
        finally:
            self.abort()
        return [[samples[i, k] for k in range(len(request.seeds))] for i, request in enumerate(requests)]

    def abort(self) -> None:
        """Drops whatever is queued or running."""
        if self.engine.has_unfinished_requests():
            self.engine.abort_request(list(self.keys))
            self.engine.step()                         # only now the scheduler forgets them
        self.keys, self.finished = {}, []

    def share(self, value):
        """The leader's value, on all ranks of the replica; every rank must call it."""
        if self.group is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=self.first, group=self.group)
        return box[0]

    # ------------------------------------------------------------------------------------------------ weights

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """New weights under their transformers names, in place.  A tied head too: on CPU vLLM has a copy, and
        would go on with the old one without an error.  The engine is awake afterwards."""
        if self.busy:
            raise RuntimeError("load_weights() while samples are running")
        names = set()

        def watched():
            for name, weight in weights:
                names.add(name)
                yield name, weight

        self.wake("weights")
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": watched()})
        if "lm_head.weight" not in names:
            raise ValueError("lm_head.weight is missing (named_parameters() leaves out a tied head)")
        self.wake()
        # What the old weights computed: image features (and the pictures they belong to), keys and values.
        self.engine.reset_encoder_cache()
        self.llm.reset_mm_cache()
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM did not reset its prefix cache")
        self.rendered = (None, None)

    def sleep(self) -> None:
        """Weights to host memory, KV cache forgotten (level 1; level 2 corrupts).  No effect on a CPU."""
        if self.busy:
            raise RuntimeError("sleep() while samples are running")
        if not self.asleep:
            self.llm.sleep(level=1)
            self.asleep = ["weights", "kv_cache"]

    def wake(self, *parts: str) -> None:
        """Takes back the memory, or only the named parts of it; what is awake must not be woken twice."""
        for part in [part for part in self.asleep if part in parts or not parts]:
            self.llm.wake_up([part])
            self.asleep.remove(part)


def main() -> None:
    """Four samples of a model in transformers."""
    if len(sys.argv) < 3:
        sys.exit("usage: python sampler.py MODEL QUESTION [PICTURE ...]")
    query = Query("command line", sys.argv[3:], sys.argv[2], "-", "-")
    try:
        processor = Processor(sys.argv[1])
        processor.check(query)
        prompt = processor.prompt(query)
        engine = HFEngine(load_model(sys.argv[1], torch.float32), processor, max_new_tokens=256)
    except (OSError, ValueError, RuntimeError, AttributeError, KeyError, TypeError, SafetensorError) as error:
        print(f"error: {' '.join(str(error).split())[:300]}", file=sys.stderr)
        sys.exit(2)
    for drawn in engine.generate([Request(prompt, [seed_of("command line", k) for k in range(4)])])[0]:
        print(f"{sum(drawn.logprobs):8.2f}  {drawn.status.value:9s}  {drawn.text}")


if __name__ == "__main__":
    main()
