"""The built-in picture world: everything that knows it lies here.

    world.py         pictures, questions, references, context pairs
    verifiers.py     two verifiers of it: exact, and fallible
    warm_start.py    makes checkpoint/, the policy that starts here
    sample.py        a data set in the shape of FineVision, in small
"""

from toy.verifiers import FallibleVerifier, ToyVerifier, boxed_answer, can_judge, read_judge_prompt
from toy.world import (
    CHECKPOINT,
    COLOURS,
    COUNTED,
    FACTS,
    HIDDEN,
    MADE_UP,
    MISCONCEPTION,
    PREAMBLES,
    RETRY_PROMPT,
    Problem,
    answer_text,
    combine,
    draw_problem,
    draw_scene,
    heldout_pairs,
    heldout_queries,
    make_query,
    render,
    solve,
    train_pairs,
    train_queries,
)
