"""Both stages and their verdicts as one running batch: contextrl.collect without the waiting in between."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from queue import SimpleQueue

from data import Prompt
from sampler import Rollout, VLLMEngine, on_leader, seed_of


def two_stages(engine: VLLMEngine, rollouts_P: list[Rollout], group_size: int, seed_key: tuple,
               judge: Callable, retry_messages: Callable[[Rollout], list[str]], workers: int = 32) -> None:
    """Fills samples_G, verdicts_G, retries_G, retry_verdicts_G.

    A response is judged while others are still being written, and a group's retries join the batch with its
    last verdict.  The seeds are those of sample() and resample(), so are the samples.

    judge(query, text) -> verdict         in a thread of the leader; an exception ends it on all ranks
    retry_messages(rollout) -> messages   one per member, or []: no stage 2 for this group
    """
    samples, verdicts = {}, {}                          # by key (stage, p, k)
    pending, judged, steps = set(), SimpleQueue(), 0    # without verdict; (key, future) of the others

    def add(stage: int, p: int, k: int, prompt: Prompt) -> None:
        engine.add((stage, p, k), prompt, seed_of(*seed_key, rollouts_P[p].name, f"stage{stage}", k))

    def new_verdicts() -> list[tuple]:
        """(key, verdict) of all judged since.  If the engine has nothing to do it waits for one."""
        done = [] if engine.busy else [judged.get()]
        while not judged.empty():
            done.append(judged.get())
        return [(key, future.result()) for key, future in done]

    def of_group(found: dict, stage: int, p: int) -> list:
        return [found[stage, p, k] for k in range(group_size) if (stage, p, k) in found]

    pool = ThreadPoolExecutor(workers)
    try:
        for p, rollout in enumerate(rollouts_P):
            for k in range(group_size):
                add(1, p, k, rollout.prompt)
        while engine.busy or pending:
            if engine.busy:
                steps += 1
                for key, drawn in engine.step():
                    samples[key] = replace(drawn, stage=key[0])
                    pending.add(key)
                    if engine.leader:
                        pool.submit(judge, rollouts_P[key[1]].query, drawn.text).add_done_callback(
                            lambda future, key=key: judged.put((key, future)))
            # All ranks of a replica must add the same requests before the same step: the leader's list
            # decides.  Every 8th step: soon enough against a judge's seconds, rare enough to cost nothing.
            if not pending or engine.busy and steps % 8:
                continue
            for key, verdict in on_leader(engine, new_verdicts):
                verdicts[key] = verdict
                pending.remove(key)
                stage, p, _ = key
                rollout, verdicts_G = rollouts_P[p], of_group(verdicts, 1, p)
                if stage == 1 and len(verdicts_G) == group_size:
                    rollout.samples_G, rollout.verdicts_G = of_group(samples, 1, p), verdicts_G
                    for k, message in enumerate(retry_messages(rollout)):
                        failed = rollout.samples_G[k]
                        add(2, p, k, engine.processor.follow_up(rollout.prompt, failed.ids, message))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        engine.abort()                                  # after an error; else there is nothing left
    for p, rollout in enumerate(rollouts_P):
        rollout.retries_G, rollout.retry_verdicts_G = of_group(samples, 2, p), of_group(verdicts, 2, p)
