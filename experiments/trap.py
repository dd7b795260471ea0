"""A trap, for study: the old log-prob of a rolled-back token from the stage-2 prompt, as the engine gave it.

    python -m experiments.trap [every flag of contextrl.py]

There the report had made the token likely.  As the denominator of the ratio that number makes the ratio
vanish on exactly the tokens that carry the lesson.  Nothing else differs from contextrl.py.
"""

import sys

import torch

import contextrl
from policy import Policy
from training import parts


class TrappedPolicy(Policy):
    def denominator(self, old_T: torch.Tensor, engine_T: torch.Tensor,
                    on_policy_T: torch.Tensor) -> torch.Tensor:
        return torch.where(on_policy_T, old_T, engine_T)


def main() -> None:
    sys.argv[0] = "python -m experiments.trap"      # what --help calls it
    parts.Policy = TrappedPolicy                    # the class that parts.load_policy() makes
    contextrl.main()


if __name__ == "__main__":
    main()
