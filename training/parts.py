"""Turns names on a command line into parts: data, verifier, model, policy, engine.

The one file that knows what a name means.  No name is the built-in world (toy/); "rule" is the final answer
alone; something with :// is a server; NAME.py is a function of yours; anything else is a checkpoint folder or
a hub id.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

import toy
from context_pairs.loss import option_ids
from context_pairs.pairs import ContextPair, deal_letters, drop_unaskable, load_pairs, query_of_pair
from data import (
    DataError,
    Processor,
    Query,
    load_model,
    load_queries,
    open_picture,
    read_picture,
    report_skipped,
    retry_template,
    short,
)
from judges.custom import FunctionVerifier
from judges.rule import RuleFirst, RuleVerifier
from policy import Policy, all_gather
from reward import Verifier, VerifierLike
from sampler import HFEngine, VLLMEngine
from tools.files import digest_of, weights_digest
from training.checkpoint import load_checkpoint, loading, model_fingerprint
from training.config import Config
from training.model_check import check_model, refuse_other_layers
from training.rollouts import read_rollouts
from training.run_folder import RunFolder
from training.stopping import on_all_ranks

BUILT_IN = ("", "toy")
RULE = RuleVerifier()


# ----------------------------------------------------------------------------------------------------- models

def model_path(name: str) -> str:
    return toy.CHECKPOINT if name in BUILT_IN else name


def load_processor(model: str, max_pixels: int | None = None) -> Processor:
    path = model_path(model)
    with loading(f"model {path}"):
        return Processor(path, max_pixels)


def open_engine(model: str, kind: str = "hf", max_new_tokens: int = 32, temperature: float = 1.0,
                max_pixels: int | None = None, max_context: int = 4096, max_rows: int = 256,
                memory_share: float = 0.85) -> HFEngine | VLLMEngine:
    """An engine with weights of its own, for evaluation, benchmarks and data building.  Its context is
    `max_context`, or the model's own length if that is less."""
    from transformers import AutoConfig

    cuda = torch.cuda.is_available()
    path, processor = model_path(model), load_processor(model, max_pixels)
    with loading(f"model {path}"):
        max_context = min(max_context, AutoConfig.from_pretrained(path).text_config.max_position_embeddings)
        if max_new_tokens >= max_context:
            raise DataError(f"--max_new_tokens {max_new_tokens} leaves no place for a prompt in "
                            f"{max_context} tokens")
        if kind == "vllm":
            return VLLMEngine(path, processor, temperature, max_new_tokens, max_context,
                              memory_share=memory_share, max_rows=max_rows)
        loaded = load_model(path, torch.bfloat16 if cuda else torch.float32)
        loaded = loaded.to("cuda" if cuda else "cpu").eval()
        return HFEngine(loaded, processor, temperature, max_new_tokens, max_rows)


# ------------------------------------------------------------------------------------------------------- data

def load_train(name: str) -> list[Query]:
    return toy.train_queries() if name in BUILT_IN else load_queries(name)


def load_heldout(name: str, train: str = "") -> list[Query]:
    """Held-out queries; those of the built-in world go with its training queries only."""
    if name not in BUILT_IN:
        return load_queries(name)
    return toy.heldout_queries() if name == "toy" or train in BUILT_IN else []


def load_context_pairs(name: str, seed: int) -> list[ContextPair]:
    """[] without a name."""
    if not name:
        return []
    return deal_letters(toy.train_pairs(), seed) if name == "toy" else load_pairs(name, seed)


def load_heldout_pairs(name: str) -> list[ContextPair]:
    return toy.heldout_pairs() if name in BUILT_IN else load_pairs(name)


def askable(items: list, processor: Processor, query_of: Callable = lambda query: query) -> list:
    """Items whose query this model can be asked: no special token in the text, and pictures that can be
    decoded and fit into the model's bounds.  The others are counted and named; none left is an error.

    Each picture is decoded once, here and in threads, so that a broken one does not end a run later.  Ranks
    share the pictures, and all of them drop the same items.
    """
    def problem(image: str | bytes) -> str:
        try:
            with open_picture(image) as picture:
                processor.size_of(picture)
            read_picture(image, draft=True)
        except DataError as error:
            return str(error)
        return ""

    queries = [query_of(item) for item in items]
    images = list(dict.fromkeys(image for query in queries for image in query.images))
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    mine = range(rank, len(images), world)
    with ThreadPoolExecutor() as pool:
        found = tqdm(pool.map(lambda i: (i, problem(images[i])), mine), total=len(mine), desc="pictures",
                     delay=2, leave=False, disable=rank > 0)
        broken = {images[i]: why for share in all_gather(list(found)) for i, why in share if why}

    kept, bad = [], []
    for item, query in zip(items, queries, strict=True):
        try:
            processor.check(query)
            for image in query.images:
                if image in broken:
                    raise DataError(f"query {short(query.id)}: {broken[image]}")
            kept.append(item)
        except DataError as error:
            bad.append(str(error))
    if bad and not kept:
        raise DataError(f"nothing that this model can be asked: all {len(bad)} are bad, the first: {bad[0]}")
    report_skipped(bad, f"rows skipped that this model cannot be asked, {len(kept)} kept")
    return kept


def is_built_in(queries: Sequence[Query]) -> bool:
    """Whether all of them are of the built-in world, so that its exact verifier can judge them."""
    return any(map(toy.can_judge, queries)) and all(
        toy.can_judge(query) or query.facts.get("rule") for query in queries)


def counted_families(queries: Sequence[Query]) -> set[str] | None:
    """Families that count overall; None: all.  (One family of the built-in world is held out only.)"""
    return toy.COUNTED if toy.COUNTED & {query.family for query in queries} else None


def data_note(queries: Sequence[Query]) -> str:
    """What a reader of the run's report has to know of its data."""
    return (f"In the built-in world {', '.join(toy.HIDDEN)} are made-up words about which the start policy "
            "was taught something false.") if is_built_in(queries) else ""


def retry_prompt(file: str, queries: Sequence[Query]) -> str:
    """The words of stage 2: of a file, of the built-in world for its own data, or the default."""
    return toy.RETRY_PROMPT if not file and is_built_in(queries) else retry_template(file)


# -------------------------------------------------------------------------------------------------- verifiers

def runs_in_process(name: str) -> bool:
    """Whether a verifier's name is a model that is to run beside the policy."""
    return not (name in (*BUILT_IN, "rule") or "://" in name or name.endswith(".py"))


def can_judge(name: str, facts: dict) -> bool:
    """Whether the verifier of this name can judge a query with these facts: that of the built-in world has to
    know what the picture shows."""
    return name not in BUILT_IN or facts.keys() >= toy.FACTS


def open_verifier(name: str, context: str, queries: Sequence[Query], judge_model: str = "",
                  prompt_file: str = "", timeout: float = 120.0, concurrency: int = 32,
                  max_failed_share: float = 0.2, log: str = "", max_context: int = 4096,
                  memory_share: float = 0.5) -> VerifierLike:
    """Who judges `queries`, by name.  Refuses at once what cannot work: a server that does not answer, a
    verifier that cannot judge this data.  A model in process starts later, with start_judge()."""
    if prompt_file and not ("://" in name or runs_in_process(name)):
        raise DataError(f"--judge_prompt {prompt_file} needs a judge: --verifier URL or a model")
    if name in BUILT_IN:
        stranger = next((q for q in queries if not (toy.can_judge(q) or q.facts.get("rule"))), None)
        if stranger:
            raise DataError(f"query {short(stranger.id)} is not of the built-in world, whose verifier needs "
                            "the facts of its picture: --verifier URL, 'rule', a model or a file of yours")
        verifier = toy.ToyVerifier(context)
    elif name == "rule":
        verifier = RULE
    elif name.endswith(".py"):
        verifier = FunctionVerifier(name, concurrency)
    else:
        if "://" in name:
            from judges.server import OpenAIChat  # needs the openai client, other verifiers do not

            chat = OpenAIChat(name, judge_model, timeout, log=log)
            chat.check()
        else:
            from judges.local import LocalChat

            model_fingerprint(name)
            chat = LocalChat(name, max_context, memory_share=memory_share)
        verifier = Verifier(chat, context, concurrency, max_failed_share, prompt_file=prompt_file)
    return RuleFirst(verifier) if any(query.facts.get("rule") for query in queries) else verifier


def start_judge(verifier: VerifierLike, engine) -> None:
    """Starts a judge that takes turns with the policy's engine; other judges are at work already."""
    if takes_turns(verifier):
        of_model(verifier).chat.start(engine)


def takes_turns(verifier: VerifierLike | None) -> bool:
    """Whether the judge needs the GPU for itself, so that stages and verdicts come one after another."""
    return hasattr(getattr(of_model(verifier), "chat", None), "start")


def of_model(verifier):
    """The verifier that asks a judge, if there is one inside."""
    return verifier.verifier if isinstance(verifier, RuleFirst) else verifier


# ----------------------------------------------------------------------------------------------- all of a run

@dataclass
class Parts:
    """Everything that a run is made of."""

    config: Config
    run: RunFolder
    queries: list[Query]                     # to train on
    heldout: list[Query]
    pairs: list[ContextPair]                 # of the auxiliary loss; [] without
    recorded: dict[int, list[dict]]          # step -> rows of --rollouts_from; {} without
    retry_template: str                      # the words of stage 2
    processor: Processor
    policy: Policy
    engine: Any                              # sampler.Engine; None: nothing is sampled
    verifier: Any                            # reward.VerifierLike; None: nothing is judged
    exact_verifier: Any                      # of evaluation: the full solution, exact where that exists


def assemble(config: Config, run: RunFolder, device: str) -> Parts:
    """All parts of a run.  Mistakes are found before anything large is loaded or a folder is made."""
    check_verifier_settings(config)
    queries, heldout = load_train(config.data), load_heldout(config.eval_data, config.data)
    pairs = load_context_pairs(config.context_pairs, config.seed)
    samples = bool(heldout) or not (config.method == "sft" or config.rollouts_from)
    judged = heldout if config.method == "sft" else [*queries, *heldout]
    verifier, exact_verifier = open_verifiers(config, run, judged) if samples else (None, None)
    template = retry_prompt(config.retry_prompt, queries)
    processor = load_processor(config.model, config.max_pixels)
    queries, heldout = askable(queries, processor), askable(heldout, processor)
    recorded = read_rollouts(config.rollouts_from, {q.id for q in queries}, config.steps)
    if pairs:
        option_ids(processor)                                     # or one line, before anything is sampled
        pairs = drop_unaskable(askable(pairs, processor, query_of_pair), processor, config.max_context)
    run.remember(lambda: contents(config, queries, heldout, pairs, verifier, template))
    policy = load_policy(config, run, processor, device)
    if not config.rollout_only:
        gap = check_model(policy, queries[0])
        run.print(f"model: a response beside others has the log-probs that it has alone, to {gap:.0e}")
    engine = None
    if samples:
        engine = policy_engine(config, processor, policy)
        on_all_ranks(start_judge, verifier, engine)
    run.open()
    return Parts(config, run, queries, heldout, pairs, recorded, template, processor, policy, engine,
                 verifier, exact_verifier)


def contents(config: Config, queries: list[Query], heldout: list[Query], pairs: list[ContextPair],
             verifier: VerifierLike | None, template: str) -> dict[str, str]:
    """Name -> digest of everything that a run is made of.  Of pictures in files the size is looked at."""
    from transformers.utils import cached_file

    def rows(items: Sequence[Query | ContextPair]) -> str:
        return digest_of(*(repr((item, [os.path.getsize(picture) for picture in pictures_of(item)]))
                           for item in items))

    model = model_path(config.model)
    if os.path.isdir(model):
        model = weights_digest(model)
    else:                              # a hub id: the snapshot's commit, as its weights may not be there yet
        model = Path(cached_file(model, "config.json")).parent.name
    files = {"verifier": config.verifier if config.verifier.endswith(".py") else "",
             "rollouts_from": config.rollouts_from}
    judge = of_model(verifier)
    judged = {"judge_prompt": digest_of(judge.template)} if isinstance(judge, Verifier) else {}
    return {"data": rows(queries), "eval_data": rows(heldout), "context_pairs": rows(pairs), **judged,
            "model": model, "retry_prompt": digest_of(template),
            **{name: digest_of(Path(file).read_bytes()) for name, file in files.items() if file}}


def pictures_of(item: Query | ContextPair) -> list[str]:
    """Paths of its pictures; those in memory are part of the item."""
    pictures = item.images if isinstance(item, Query) else [item.supporting, item.confounding]
    return [path for path in pictures if isinstance(path, str) and os.path.isfile(path)]


def check_verifier_settings(config: Config) -> None:
    in_process = runs_in_process(config.verifier)
    for bad, message in [
        (in_process and config.engine != "vllm",
         f"--verifier {config.verifier}: neither a URL, 'rule' nor a file NAME.py, and a model in process "
         "needs --engine vllm"),
        (in_process and config.tensor_parallel > 1, "a judge in process needs --tensor_parallel 1"),
    ]:
        if bad:
            raise DataError(message)


def open_verifiers(config: Config, run: RunFolder, queries: list[Query]) -> tuple[VerifierLike, VerifierLike]:
    """-> (verifier of training, verifier of evaluation)."""
    verifier = open_verifier(
        config.verifier, config.verifier_context, queries, config.judge_model, config.judge_prompt,
        config.judge_timeout, config.judge_concurrency, config.judge_max_failed,
        str(run.folder / f"judge-{run.rank:05d}.jsonl"), config.max_context, config.engine_memory)
    judge = of_model(verifier)
    if isinstance(judge, Verifier):
        run.print(f"verifier {config.verifier}: {judge.stops_after()}")
    if is_built_in(queries):
        return verifier, open_verifier("", "solution", queries)
    if not isinstance(judge, Verifier) or judge.context == "solution":
        return verifier, verifier
    exact = Verifier(judge.chat, "solution", config.judge_concurrency, config.judge_max_failed)
    return verifier, RuleFirst(exact) if isinstance(verifier, RuleFirst) else exact


def load_policy(config: Config, run: RunFolder, processor: Processor, device: str) -> Policy:
    """The start policy, or that of the checkpoint if the run is resumed."""
    path = model_path(config.model)
    with loading(f"model {path}"):
        refuse_other_layers(path)
        policy = Policy(
            path, processor, config.learning_rate, config.steps, config.warmup_steps, config.min_lr_ratio,
            config.weight_decay, config.temperature, reference=config.kl_coef > 0, device=device,
            compute_dtype=torch.bfloat16 if config.on_cuda() and config.dtype != "float32" else None,
            attention=None if config.attention == "auto" else config.attention,
            gradient_checkpointing=config.gradient_checkpointing, freeze_vision=config.freeze_vision,
            offload_reference=config.offload_reference)
    if run.checkpoint and not config.rollout_only:
        with loading(f"checkpoint {run.checkpoint}"):
            load_checkpoint(policy, run.checkpoint)
    return policy


def policy_engine(config: Config, processor: Processor, policy: Policy) -> HFEngine | VLLMEngine:
    """Samples the policy.  Starts with its present weights: those of a checkpoint if the run is resumed."""
    if config.engine == "vllm":
        with loading(f"engine vllm with {policy.path}"):
            engine = VLLMEngine(policy.path, processor, config.temperature, config.max_new_tokens,
                                config.max_context, config.tensor_parallel, config.engine_memory,
                                dtype=str(policy.compute_dtype)[6:])
    else:                               # shards cannot generate: the engine then has a whole copy of its own
        model = policy.whole_copy() if policy.sharded else policy.model
        engine = HFEngine(model, processor, config.temperature, config.max_new_tokens)
    engine.load_weights(policy.weights())
    return engine
