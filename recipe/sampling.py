"""Texts of a model and their verdicts, for stages 4 and 5: from an engine in this process, or from
servers."""

from collections.abc import Iterator

from data import Query
from judges.server import CUT_OFF, OpenAIChat, TransientError
from reward import JudgeError, VerdictStatus, VerifierLike, VerifierUnreliable, side_by_side
from sampler import HFEngine, Request, SampleStatus, VLLMEngine, seed_of
from training.parts import open_engine, open_verifier

CONCURRENCY = 32                                   # calls of servers at once
MAX_FAILED_SHARE = 0.2                             # of the verdicts of a chunk; more: the judge is away
MIN_REFUSED = 8                                    # so many rows, all of them refused, end a build


class SamplingClient(OpenAIChat):
    """Samples of servers: temperature 1, each call with a seed of its own."""

    def sample(self, query: Query, seed: int) -> str | None | JudgeError:
        """None: the text was cut off at max_tokens.  A JudgeError: these servers will never answer the
        query."""
        content = [{"type": "image", "image": image} for image in query.images]
        content.append({"type": "text", "text": query.question})
        try:
            return self.complete([{"role": "user", "content": content}], temperature=1.0, top_p=1.0,
                                 seed=seed)
        except TransientError:
            raise
        except JudgeError as error:
            return None if error.name == CUT_OFF else error


def open_sampler(role: str, args) -> SamplingClient | HFEngine | VLLMEngine:
    """The policy or the teacher."""
    model = getattr(args, role)
    if "://" in model:
        client = SamplingClient(model, getattr(args, f"{role}_model"), timeout=600.0,
                                max_tokens=args.max_new_tokens)
        client.check()
        return client
    # Half of the memory: policy and teacher may both be in this process.
    return open_engine(model, args.engine, args.max_new_tokens, max_pixels=3_000_000,
                       max_context=args.max_new_tokens + 4096, memory_share=0.5)


def open_judge(args) -> VerifierLike:
    return open_verifier(args.verifier, "answer", (), args.judge_model, args.judge_prompt,
                         concurrency=CONCURRENCY)


def sample_texts(sampler, queries: list[Query], n: int, key: tuple) -> list[list[str | None | JudgeError]]:
    """n texts for each query: None for one that was cut off, a JudgeError where nothing can be sampled."""
    seeds = {query.id: [seed_of(*key, query.id, k) for k in range(n)] for query in queries}
    if isinstance(sampler, SamplingClient):
        calls = [(query, seed) for query in queries for seed in seeds[query.id]]
        in_order = iter(side_by_side(sampler.sample, calls, CONCURRENCY))
        texts = [[next(in_order) for _ in range(n)] for _ in queries]
    else:
        samples = sampler.generate([Request(sampler.processor.prompt(q), seeds[q.id]) for q in queries])
        special = {SampleStatus.TRUNCATED: None, SampleStatus.TOO_LONG: JudgeError("prompt is too long")}
        texts = [[special.get(s.status, s.text) for s in samples_G] for samples_G in samples]
    errors = [text for texts_G in texts for text in texts_G if isinstance(text, JudgeError)]
    if len(queries) >= MIN_REFUSED and len(errors) == n * len(queries):
        raise errors[0]                             # not the fault of so many rows
    return texts


def query_of_row(row: dict, args) -> Query:
    """As the policy is shown it: options in one house style, then how to answer."""
    options = [f"{name}. {text}" for name, text in (row["choices"] or {}).items()]
    question = "\n".join(filter(None, [row["question"], *options, args.instruction]))
    facts = {"choices": row["choices"]} | row["facts"]                 # as in train.jsonl, for the verifier
    return Query(row["id"], [str(args.out / image) for image in row["images"]], question, row["solution"],
                 row["answer"], row["subset"], facts)


def sample_and_judge(batch: list[dict], sampler, verifier: VerifierLike, key: tuple,
                     args) -> Iterator[tuple[dict, list, list, str]]:
    """-> (row, its texts, their verdicts, why the row has to go: a text or a verdict could not be had)."""
    queries = [query_of_row(row, args) for row in batch]
    texts = sample_texts(sampler, queries, args.samples, key)
    to_judge = [(q, text) for q, texts_G in zip(queries, texts) for text in texts_G if isinstance(text, str)]
    judged = verifier.judge(*map(list, zip(*to_judge))) if to_judge else []
    failed = [v for v in judged if v.status is VerdictStatus.FAILED]
    if len(failed) > max(len(judged) * MAX_FAILED_SHARE, args.samples):
        raise VerifierUnreliable(f"{len(failed)} of {len(judged)} verdicts failed, the last: "
                                 f"{failed[-1].error}")
    verdicts = iter(judged)
    for row, texts_G in zip(batch, texts):
        verdicts_G = [next(verdicts) if isinstance(text, str) else None for text in texts_G]
        error = next((text.name for text in texts_G if isinstance(text, JudgeError)), "")
        if not error and any(v and v.status is VerdictStatus.FAILED for v in verdicts_G):
            error = "a verdict failed"
        yield row, texts_G, verdicts_G, error
