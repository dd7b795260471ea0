"""Any text at all, with the pieces that answers are made of: for tests of rules that read them."""

from hypothesis import strategies as st

PIECES = ["\\boxed{", "{", "}", "<think>", "</think>", "<answer>", "</answer>", "Answer:", "the answer is ",
          "**", "$", "\n", " ", "A", "B", "a ", "the ", "yes", "no ", "not ", ",", "1", "2.5", "-", "/", "(",
          ")", "\\frac{", "\\text{", "\\sqrt", "^", "π", "%", "°", "and ", ". ", '"answer": ', '"', "[", "]",
          "Ａ", "（", "×", "½", "e5", "\\", "x=", "cm", "²", "İ", "ß", "\u0345", "1,234", "\\left(", "√",
          "答案"]
anything = st.one_of(st.text(max_size=60), st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=3)),
                                                   max_size=25).map("".join))
