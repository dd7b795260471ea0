"""Is a group in one row what each of its responses is alone, for the model that is loaded?

The update puts the responses of a query side by side behind one prompt, and on CUDA rows end to end, with
masks and positions that keep them apart.  A layer that looks at its neighbours in another way (a linear
attention's state, a sliding window) would train with wrong log-probs and not say so.
"""

import math

import torch

from data import DataError, Query
from grpo import Member
from policy import Policy, Row
from sampler import NOT_FINITE

TOKENS = 16                                    # of each response
# Rounding, also of a kernel that adds up in another order.  A mask that leaks is off by more.
ALLOWED = {torch.float64: 1e-8, torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.25}


def refuse_other_layers(model: str) -> None:
    """DataError unless every layer of the language model is full attention: a sliding window would show in
    long rows only."""
    from transformers import AutoConfig

    layers = getattr(AutoConfig.from_pretrained(model).text_config, "layer_types", None) or []
    other = sorted({*layers} - {"full_attention"})
    if other:
        raise DataError(f"model {model} has layers of {', '.join(other)}, in which responses side by side "
                        "would see each other: it cannot be trained here")


@torch.no_grad()
def check_model(policy: Policy, query: Query) -> float:
    """-> the largest |log-prob beside others - log-prob alone| of two made-up responses to `query`; DataError
    if it is more than rounding, FloatingPointError if it is no number.  All ranks must call it."""
    prompt = policy.processor.prompt(query)
    ids = policy.processor.encode_response(query.solution)[-TOKENS:]
    one, other = Member(ids, [], 0.0), Member(ids[::-1], [], 0.0)

    def logprobs(*rows: list[Member]) -> torch.Tensor:
        return policy.logprobs(policy.pack([Row(prompt, members) for members in rows]))[0]

    together = logprobs([one, other], [other])
    alone = torch.cat([logprobs([member]) for member in (one, other, other)])
    gap = (together - alone).abs().max().item()
    if math.isnan(gap):
        raise FloatingPointError(NOT_FINITE)
    if gap > ALLOWED[policy.compute_dtype]:
        raise DataError(f"model {policy.path}: a response beside others has log-probs that differ by "
                        f"{gap:.1e} from those it has alone: this kind of model cannot be trained here")
    return gap
