"""sampler.py: a sample is a function of its prompt, its seed and the weights, and of nothing else.

Guards against: padding, caching or batch neighbours that change a sample, log-probs that are not those of the
distribution sampled from, ids the trainer cannot digest, retries that see another member's report.
"""

import math

import pytest
import torch
from conftest import plain_logits, response_logprobs

import toy
from data import Query, retry_message, retry_template
from policy import Policy
from sampler import HFEngine, Request, Rollout, Sample, SampleStatus, resample, sample, seed_of


@pytest.fixture
def engine(policy, processor) -> HFEngine:
    return HFEngine(policy.model, processor, max_new_tokens=9)


@pytest.fixture(scope="session")
def prompts(prompt_of):
    """Lengths differ by up to 60 tokens, so all but one are left-padded; none, one or two pictures."""
    return [prompt_of("how many red plus blue ?", (96, 96)), prompt_of("describe ?"),
            prompt_of("is red plus blue plus circle over 6 ?", (70, 131), (200, 131), seed=3),
            prompt_of("?", (33, 40))]


def requests(prompts) -> list[Request]:
    return [Request(prompt, [seed_of("test", i, k) for k in range(1 + i)])
            for i, prompt in enumerate(prompts)]


# ----------------------------------------------------------------------------------------------- the engine

def test_a_sample_does_not_depend_on_the_batch_around_it(engine, prompts):
    together = engine.generate(requests(prompts))
    alone = [engine.generate([request])[0] for request in requests(prompts)]
    reversed_order = engine.generate(requests(prompts)[::-1])[::-1]
    engine.max_rows = 3                             # 1 + 2, then 3, then 4 rows: three batches instead of one
    in_parts = engine.generate(requests(prompts))
    for others in (alone, reversed_order, in_parts):
        for samples, again in zip(together, others, strict=True):
            assert [s.ids for s in samples] == [s.ids for s in again]
            for s, a in zip(samples, again):
                assert s.logprobs == pytest.approx(a.logprobs, abs=1e-5)
    single = engine.generate([Request(prompts[3], [seed_of("test", 3, 2)])])[0][0]       # one seed of four
    assert single.ids == together[3][2].ids
    assert len({tuple(s.ids) for samples in together for s in samples}) == 10            # and all ten differ


@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_engine_logprobs_are_the_plain_models(policy, processor, prompts, temperature):
    engine = HFEngine(policy.model, processor, temperature, max_new_tokens=9)
    for request, samples in zip(requests(prompts), engine.generate(requests(prompts)), strict=True):
        for drawn in samples:
            expected = response_logprobs(policy.model, request.prompt, drawn.ids, processor, temperature)
            assert drawn.logprobs == pytest.approx(expected.tolist(), abs=1e-5)


def test_engine_and_trainer_have_one_distribution(policy, processor, prompts):
    """Ids that may not be sampled have no share in the trainer's log-probs either,
    however likely they look."""
    from grpo import Member
    from policy import Row

    engine = HFEngine(policy.model, processor, max_new_tokens=9)
    samples = engine.generate(requests(prompts))
    rows = [Row(prompt, [Member(s.ids, s.logprobs, None) for s in part])
            for prompt, part in zip(prompts, samples)]
    trainer = policy.logprobs(policy.pack(rows))[0]
    shown = torch.tensor([v for part in samples for s in part for v in s.logprobs])
    torch.testing.assert_close(shown, trainer, atol=1e-5, rtol=0)
    first = plain_logits(policy.model, prompts[0].ids, prompts[0].images, processor)[-1].softmax(-1)
    assert first[processor.forbidden_ids].sum() > 1e-3                     # there is something to be left out


def test_forbidden_ids_are_never_sampled(policy, processor, prompts):
    many = [Request(prompts[0], list(range(60)))]                       # 60 x 9 tokens of an untrained policy
    with torch.no_grad():   # placeholders become as likely as they can be in an early policy: their rows grow
        policy.model.lm_head.weight[processor.forbidden_ids] *= 2
    engine = HFEngine(policy.model, processor, max_new_tokens=9)
    tokens = {t for s in engine.generate(many)[0] for t in s.ids}
    assert not tokens & set(processor.forbidden_ids)
    engine.forbidden = engine.forbidden[:0]
    assert {t for s in engine.generate(many)[0] for t in s.ids} & set(processor.forbidden_ids)


def test_greedy_is_deterministic_and_is_what_generate_gives(engine, policy, processor, prompts):
    first, other_seeds = (engine.generate([Request(p, [seed]) for p in prompts], temperature=0.0)
                          for seed in (1, 2))
    for prompt, (drawn,), (again,) in zip(prompts, first, other_seeds, strict=True):
        ids = torch.tensor([prompt.ids])
        pixels = processor.pixel_batch(prompt.images)
        types = {"mm_token_type_ids": (ids == processor.image_id).long()} if prompt.images else {}
        with torch.no_grad():
            out = policy.model.eval().generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=9,
                suppress_tokens=processor.forbidden_ids, pad_token_id=processor.pad_id, **pixels, **types)
        assert drawn.ids == again.ids == out[0, len(prompt.ids):].tolist()


def test_status_length_and_text(policy, processor, prompts):
    with torch.no_grad():
        policy.model.lm_head.weight[processor.eos_id] *= 1.5                 # some end early, some do not
    policy.model.train()
    engine = HFEngine(policy.model, processor, max_new_tokens=9)
    samples = engine.generate([Request(prompts[0], list(range(200)))])[0]
    for s in samples:
        ended = s.ids[-1] == processor.eos_id
        assert s.status is (SampleStatus.COMPLETED if ended else SampleStatus.TRUNCATED)
        assert processor.eos_id not in s.ids[:-1] and len(s.ids) == len(s.logprobs)
        assert ended or len(s.ids) == 9
        assert s.text == processor.decode(s.ids) and "<|im_end|>" not in s.text
    assert {s.status for s in samples} == {SampleStatus.COMPLETED, SampleStatus.TRUNCATED}
    assert any(len(s.ids) < 9 for s in samples)
    assert policy.model.training                                             # left as it was found


def test_a_prompt_without_room_is_not_sampled(engine, policy, processor, prompts):
    limit = policy.model.config.text_config.max_position_embeddings - engine.max_new_tokens
    over = processor.prompt(Query("q", [], "red " * limit, "-", "-"))
    over.ids, over.positions = over.ids[:limit + 1], over.positions[:, :limit + 1]
    asked = requests(prompts)
    found = engine.generate([*asked[:2], Request(over, [1, 2]), *asked[2:]])
    assert found.pop(2) == [Sample([], [], SampleStatus.TOO_LONG, "")] * 2
    assert [[s.ids for s in part] for part in found] == [[s.ids for s in part]
                                                         for part in engine.generate(asked)]
    assert engine.generate([Request(over, [1])])[0][0].status is SampleStatus.TOO_LONG


def test_load_weights_copies_what_is_not_shared(engine, policy, checkpoint, processor, prompts):
    own = {name: weight.data_ptr() for name, weight in policy.model.state_dict().items()}
    engine.load_weights(policy.model.named_parameters())                    # the trainer's own: nothing moves
    assert own == {name: weight.data_ptr() for name, weight in policy.model.state_dict().items()}
    copy = HFEngine(Policy(checkpoint, processor).model, processor, max_new_tokens=9)
    before = [s.ids for part in copy.generate(requests(prompts)) for s in part]
    with torch.no_grad():
        for weight in policy.model.parameters():
            weight.mul_(1.1)
    copy.load_weights(policy.model.named_parameters())
    after = [s.ids for part in copy.generate(requests(prompts)) for s in part]
    assert after == [s.ids for part in engine.generate(requests(prompts)) for s in part] != before
    with pytest.raises(KeyError, match="no.such.weight"):
        copy.load_weights([("no.such.weight", torch.zeros(1))])
    assert (engine.replica, engine.replicas, engine.leader, engine.share("x")) == (0, 1, True, "x")


def is_fair(draws: list[int], p: torch.Tensor) -> bool:
    """Chi-square over the outcomes expected at least 5 times, all others as one: mean df,
    deviation sqrt(2 df)."""
    counts, expected = torch.bincount(torch.tensor(draws), minlength=len(p)), len(draws) * p
    common = expected >= 5
    seen, hoped = (torch.cat([v[common], v[~common].sum()[None]]) for v in (counts, expected))
    statistic, df = ((seen - hoped) ** 2 / hoped.clamp(min=1)).sum().item(), common.sum().item()
    assert df > 8
    return abs(statistic - df) < 5 * math.sqrt(2 * df)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_tokens_are_drawn_from_the_softmax(policy, processor, prompts, temperature):
    def p_after(*ids: int) -> torch.Tensor:
        logits = plain_logits(policy.model, prompts[0].ids + list(ids), prompts[0].images,
                              processor)[-1].detach()
        logits[processor.forbidden_ids] = -torch.inf
        return (logits / temperature).softmax(-1)

    engine = HFEngine(policy.model, processor, temperature, max_new_tokens=2)
    samples = engine.generate([Request(prompts[0], [seed_of(k) for k in range(4000)])])[0]
    assert is_fair([s.ids[0] for s in samples], p_after())
    # One number for both tokens of a row would go unseen so far.  Second tokens behind one and the same first
    # token, in blocks of 50 ids: each block must get its share.
    first = p_after().argmax().item()
    p = p_after(first)
    blocks = torch.bincount(torch.arange(len(p)) // 50, p)
    assert is_fair([s.ids[1] // 50 for s in samples if s.ids[0] == first], blocks.float())


# ----------------------------------------------------------------------------------------------- two stages

class Watched(HFEngine):
    """The real engine; keeps what it was asked."""

    def generate(self, requests, temperature=None):
        self.asked = requests
        return super().generate(requests, temperature)


def rollouts_of(prompts, names: str) -> list[Rollout]:
    return [Rollout(Query(name, prompt.images, "?", "-", "-"), prompt, name)
            for prompt, name in zip(prompts, names, strict=True)]


def stage1(engine, prompts, names: str, group_size: int, seed_key: tuple) -> list[list[Sample]]:
    rollouts = rollouts_of(prompts, names)
    sample(engine, rollouts, group_size, seed_key)
    return [rollout.samples_G for rollout in rollouts]


def stage2(engine, prompts, names: str, failed_P_G, messages_P_G, seed_key: tuple) -> list[list[Sample]]:
    rollouts = rollouts_of(prompts, names)
    for rollout, failed_G in zip(rollouts, failed_P_G, strict=True):
        rollout.samples_G = failed_G
    resample(engine, rollouts, messages_P_G, seed_key)
    return [rollout.retries_G for rollout in rollouts]


def test_stage1_asks_k_samples_with_seeds_of_their_own(policy, processor, prompts):
    engine = Watched(policy.model, processor, max_new_tokens=3)
    samples = stage1(engine, prompts[:2], "ab", 5, (0, 1))
    assert [len(s) for s in samples] == [5, 5] and all(s.stage == 1 for part in samples for s in part)
    seeds = [seed for request in engine.asked for seed in request.seeds]
    for key in ((0, 2), (1, 1)):                                             # another step, another run
        stage1(engine, prompts[:2], "ab", 5, key)
        seeds += [seed for request in engine.asked for seed in request.seeds]
    stage2(engine, prompts[:1], "a", [samples[0]], [["again"] * 5], (0, 1))
    seeds += [seed for request in engine.asked for seed in request.seeds]
    assert len(seeds) == len(set(seeds)) == 35                               # 3 x 2 x 5 and 5 retries
    assert [s.ids for s in stage1(engine, prompts[1:2], "b", 5, (0, 1))[0]] == [s.ids for s in samples[1]]


def test_stage2_asks_one_retry_per_negative_with_its_own_report(policy, processor, prompts):
    engine = Watched(policy.model, processor, max_new_tokens=4)

    def failed(text: str) -> Sample:
        ids = processor.encode_response(text)
        return Sample(ids, [0.0] * len(ids), SampleStatus.COMPLETED, text)

    failures = [[failed("red 1"), failed("red 2")], [], [failed("blue 7")]]
    messages = [[retry_message(report, toy.RETRY_PROMPT) for report in reports]
                for reports in (["red is not 1", ""], [], ["blue is not 7"])]
    retries = stage2(engine, prompts[:3], "abc", failures, messages, (0, 1))
    assert [len(r) for r in retries] == [2, 0, 1] and all(r.stage == 2 for part in retries for r in part)
    shown = [processor.tokenizer.decode(request.prompt.ids) for request in engine.asked]
    assert [text.split("assistant\n", 1)[1] for text in shown] == [
        f"{tried}<|im_end|>\n<|im_start|>user\n{message}<|im_end|>\n<|im_start|>assistant\n"
        for tried, message in [
            ("red 1", "A reviewer found mistakes : red is not 1 . Solve it again from the start . "
                      "Do not mention the review ."),
            ("red 2", "Your answer is wrong . Solve it again from the start . Do not mention this ."),
            ("blue 7", "A reviewer found mistakes : blue is not 7 . Solve it again from the start . "
                       "Do not mention the review .")]]
    for request, prompt in zip(engine.asked, (prompts[0], prompts[0], prompts[2]), strict=True):
        assert request.prompt.ids[:len(prompt.ids)] == prompt.ids and request.prompt.images == prompt.images
        assert len(request.seeds) == 1
    expected = response_logprobs(policy.model, engine.asked[2].prompt, retries[2][0].ids, processor)
    # under the prompt with the report
    assert retries[2][0].logprobs == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_report_is_put_into_the_message_as_it_is():
    report = "{red} is not {0} {report} ..."
    assert f" : {report} . Solve it again" in retry_message(report, toy.RETRY_PROMPT)
    assert f": {report} Solve the problem again" in retry_message(f"\n{report} ", retry_template())
    assert "report" not in retry_message("", retry_template())
