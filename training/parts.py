"""Turns names on a command line into parts: data, verifier, model, policy, engine.

The one file that knows what a name means.  No name is the built-in world (toy/); "rule" is the final answer alone;
something with :// is a server; NAME.py is a function of yours; anything else is a checkpoint folder or a hub id.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from safetensors import SafetensorError

import toy
from context_pairs.pairs import ContextPair, deal_letters, load_pairs
from data import DataError, Processor, Query, load_queries
from judges.custom import FunctionVerifier
from judges.local import LocalChat
from judges.rule import RuleFirst, RuleVerifier
from judges.server import OpenAIChat
from policy import load_model
from reward import Verifier, VerifierLike
from sampler import HFEngine, VLLMEngine, retry_template
from tools.programs import first_line

BUILT_IN = ("", "toy")
RULE = RuleVerifier()


# ------------------------------------------------------------------------------------------------------- models

@contextmanager
def loading(what: str) -> Iterator[None]:
    """Whatever transformers raises on a folder that is not a complete checkpoint of a vision-language model: one line."""
    try:
        yield
    except DataError:
        raise
    except (OSError, ValueError, RuntimeError, AttributeError, KeyError, TypeError, ImportError,
            SafetensorError) as error:
        raise DataError(f"cannot load {what}: {first_line(error)}") from None


def model_path(name: str) -> str:
    return toy.CHECKPOINT if name in BUILT_IN else name


def load_processor(model: str, max_pixels: int | None = None) -> Processor:
    path = model_path(model)
    with loading(f"model {path}"):
        return Processor(path, max_pixels)


def model_fingerprint(model: str) -> str:
    """The architecture of a checkpoint as one string: a run is only resumed with the model it was started with."""
    from transformers import AutoConfig

    with loading(f"model {model}"):
        config = AutoConfig.from_pretrained(model).to_dict()                    # a folder or a hub id
    text, vision = config.get("text_config", {}), config.get("vision_config", {})
    return ", ".join(f"{k}={v}" for k, v in [
        ("type", config.get("model_type")), ("hidden", text.get("hidden_size")),
        ("layers", text.get("num_hidden_layers")), ("vocab", text.get("vocab_size")),
        ("vision_depth", vision.get("depth")), ("vision_hidden", vision.get("hidden_size"))])


def open_engine(model: str, kind: str = "hf", max_new_tokens: int = 32, temperature: float = 1.0,
                max_pixels: int | None = None, max_context: int = 4096, max_rows: int = 256,
                memory_share: float = 0.85) -> HFEngine | VLLMEngine:
    """An engine with weights of its own: for evaluation, benchmarks and data building.  It has a `processor`."""
    cuda = torch.cuda.is_available()
    path, processor = model_path(model), load_processor(model, max_pixels)
    with loading(f"model {path}"):
        if kind == "vllm":
            return VLLMEngine(path, processor, temperature, max_new_tokens, max_context, memory_share=memory_share,
                              max_rows=max_rows)
        loaded = load_model(path, torch.bfloat16 if cuda else torch.float32).to("cuda" if cuda else "cpu").eval()
        return HFEngine(loaded, processor, temperature, max_new_tokens, max_rows)


# --------------------------------------------------------------------------------------------------------- data

def load_train(name: str) -> list[Query]:
    return toy.train_queries() if name in BUILT_IN else load_queries(name)


def load_heldout(name: str, train: str = "") -> list[Query]:
    """Held-out queries; those of the built-in world go with its training queries only."""
    if name not in BUILT_IN:
        return load_queries(name)
    return toy.heldout_queries() if train in BUILT_IN else []


def load_context_pairs(name: str, seed: int) -> list[ContextPair]:
    """[] without a name."""
    if not name:
        return []
    return deal_letters(toy.train_pairs(), seed) if name == "toy" else load_pairs(name, seed)


def is_built_in(queries: Sequence[Query]) -> bool:
    """Whether all of them are of the built-in world, so that its exact verifier can judge them."""
    return all(toy.can_judge(query) or query.facts.get("rule") for query in queries)


def counted_families(queries: Sequence[Query]) -> set[str] | None:
    """Families that count in the overall accuracies; None: all.  (The built-in world has one that is held out only.)"""
    return toy.COUNTED if toy.COUNTED & {query.family for query in queries} else None


def retry_prompt(file: str, queries: Sequence[Query]) -> str:
    """The words of stage 2: of a file, else those that the policy of the built-in world knows, else the default."""
    return toy.RETRY_PROMPT.strip() if not file and is_built_in(queries) else retry_template(file)


# ----------------------------------------------------------------------------------------------------- verifiers

def runs_in_process(name: str) -> bool:
    """Whether a verifier's name is a model that is to run beside the policy."""
    return not (name in (*BUILT_IN, "rule") or "://" in name or name.endswith(".py"))


def open_verifier(name: str, context: str, queries: Sequence[Query], judge_model: str = "", prompt_file: str = "",
                  timeout: float = 120.0, concurrency: int = 32, max_failed_share: float = 0.2, log: str = "",
                  max_context: int = 4096, memory_share: float = 0.5) -> VerifierLike:
    """Who judges `queries`, by name.  Refuses at once what cannot work: a server that does not answer, a verifier that
    cannot judge this data.  A model in process starts later, with start_judge()."""
    if name in BUILT_IN:
        stranger = next((q for q in queries if not (toy.can_judge(q) or q.facts.get("rule"))), None)
        if stranger:
            raise DataError(f"query {stranger.id} is not of the built-in world, whose verifier needs the facts of its "
                            "picture: --verifier URL, 'rule', a model or a file of yours")
        verifier = toy.ToyVerifier(context)
    elif name == "rule":
        verifier = RULE
    elif name.endswith(".py"):
        verifier = FunctionVerifier(name, concurrency)
    else:
        if "://" in name:
            chat = OpenAIChat(name, judge_model, timeout, log=log)
            chat.check()
        else:
            model_fingerprint(name)
            chat = LocalChat(name, max_context, memory_share=memory_share)
        verifier = Verifier(chat, context, concurrency, max_failed_share, prompt_file=prompt_file)
    return RuleFirst(verifier) if any(query.facts.get("rule") for query in queries) else verifier


def start_judge(verifier: VerifierLike, engine) -> None:
    """Starts a judge that runs beside the policy's engine and takes turns with it; others are at work already."""
    chat = getattr(getattr(verifier, "verifier", verifier), "chat", None)
    if isinstance(chat, LocalChat):
        chat.start(engine)
