"""The built-in picture world: everything that knows it lies here.

    world.py         pictures, questions, reference solutions, context pairs
    verifiers.py     two verifiers of this world: an exact one and a fallible one
    warm_start.py    trains checkpoint/, the policy that every run of this world starts from
    sample.py        a small data set in the shape of FineVision
    __main__.py      writes the world as data files
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
