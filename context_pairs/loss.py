"""The auxiliary loss of context pairs (arXiv 2606.17053): which of two contexts supports the answer?

One prompt shows both contexts of a pair as options A and B.  The loss compares the log-probs of the two
letters at the first position of the response.  It needs no sampling and no reward, and reaches the policy
through the argument `auxiliary` of Policy.update.
"""

import torch
import torch.nn.functional as F

from context_pairs.pairs import ContextPair, query_of_pair, swap_options
from data import DataError, Processor, Prompt
from grpo import Member
from policy import Auxiliary, Policy, Row

LIMIT = 5.0           # c of the paper: margins are clipped to [-c, c]


def auxiliary_loss(pairs: list[ContextPair], weight: float, processor: Processor) -> Auxiliary:
    """The argument `auxiliary` of one Policy.update; `pairs` are this rank's share of the step's pairs."""
    ids = option_ids(processor)
    rows = []
    for pair in pairs:
        right, wrong = ids[pair.letter], ids[swap_options(pair).letter]
        rows.append(letter_row(processor.prompt(query_of_pair(pair)), right, wrong))

    def loss(policy: Policy, batch: list[Row]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return context_loss(*margins(policy, batch))
    return Auxiliary(rows, weight, loss, context_metrics)


def letter_row(prompt: Prompt, right: list[int], wrong: list[int]) -> Row:
    """A context pair as a row: its members are the forms of the two letters, one token each, R = 1 for the
    right one.  They add no input, so the pair costs one pass of its prompt."""
    return Row(prompt, [Member([token], [], float(token in right)) for token in [*right, *wrong]])


def option_ids(processor: Processor, letters: str = "AB") -> dict[str, list[int]]:
    """Letter -> its ids as the first token of an answer, without and with a blank before it.  Only forms
    in which every letter is one token: more forms would make a letter likelier."""
    forms = [[processor.encode(form.format(letter)) for letter in letters] for form in ("{}", " {}")]
    single = [[ids[0] for ids in form] for form in forms if all(len(ids) == 1 for ids in form)]
    if not single:
        raise DataError(f"the tokenizer has no single tokens for the letters {', '.join(letters)}")
    return {letter: [form[i] for form in single] for i, letter in enumerate(letters)}


def margins(policy: Policy, batch: list[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """-> log-probs of the right and of the wrong letter of every pair, at temperature 1 up to a constant that
    both share: [N], [N].  A letter may have two forms, with and without a blank before it; the more
    likely one counts."""
    logp = policy.logprobs(policy.pack(batch))[0] * policy.scorer.temperature
    best, at = [], 0
    for row in batch:
        if row.members:                                               # else the dummy row of a sharded policy
            forms = torch.tensor([m.reward == 1.0 for m in row.members], device=policy.device)
            own = logp[at:at + len(forms)]
            best.append(torch.stack([own[forms].max(), own[~forms].max()]))
            at += len(forms)
    return (torch.stack(best) if best else logp.view(0, 2)).unbind(1)


def context_loss(right_N: torch.Tensor, wrong_N: torch.Tensor, limit: float = LIMIT, hard: bool = True,
                 ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Which of two contexts supports the answer?  Summed over context pairs; arXiv 2606.17053.

        L = Σ_n - log σ( clip(Δ_n, -c, c) ),   Δ = logit(right letter) - logit(wrong letter)

    right_N, wrong_N [N] fp32: log-probs (or logits, the difference is the same) of the two option letters at
    the one position where the answer is due.  No sampling, no reward.  `hard`: as published, where the
    gradient is zero beyond BOTH limits, so a pair that is answered very wrongly is never learnt; not hard:
    min(Δ, c), whose gradient stays -1 there.  Returns the SUM and sums of metrics, like policy_loss.

    A right letter ahead by 1.2, one behind by 1.2, and one beyond the limit:

    >>> loss = lambda margin: context_loss(torch.tensor([margin]), torch.zeros(1))[0].item()
    >>> round(loss(1.2), 3), round(loss(-1.2), 3), round(loss(9.0), 4)
    (0.263, 1.463, 0.0067)
    """
    margin = right_N - wrong_N
    loss = -F.logsigmoid(margin.clamp(-limit if hard else None, limit)).sum()
    margin = margin.detach()
    return loss, {"context_pairs": torch.ones_like(margin).sum(), "context_loss": loss.detach(),
                  "context_right": (margin > 0).float().sum(), "context_margin": margin.sum(),
                  "context_hopeless": (margin < -limit).float().sum()}


def context_metrics(total: dict[str, float], grad_norm_without: float) -> dict[str, float]:
    """Sums over ranks -> what is logged of a step."""
    n = max(total["context_pairs"], 1)
    means = {"loss": "loss", "accuracy": "right", "margin": "margin", "hopeless_share": "hopeless"}
    return {f"context/{name}": total[f"context_{key}"] / n for name, key in means.items()} | {
        "context/pairs": total["context_pairs"], "context/grad_norm_without": grad_norm_without}
