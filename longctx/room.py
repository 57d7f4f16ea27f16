"""Whether a request fits the model's window, asked before any work is done.

Owns the sums and their messages: question and instructions, budget, new tokens, segments; and how much text is
selected where nobody says it. Knows no document and no model.
"""

from __future__ import annotations

from dataclasses import dataclass

from longctx.errors import DoesNotFit
from longctx.values import whole

BUDGET_TOKENS = 2048  # of text that are selected where nothing else is said


@dataclass(frozen=True, slots=True)
class Room:
    """A model's window and what every prompt needs of it besides text and question."""

    window: int
    frame_tokens: int

    def longest(self, question_tokens: int, max_new_tokens: int) -> int:
        """The largest budget that leaves room for the question and the answer; may be below 1."""
        return self.window - self.frame_tokens - question_tokens - max_new_tokens

    def budget(
        self, question_tokens: int, budget_tokens: int | None, max_new_tokens: int, everything: bool = False
    ) -> int:
        """``budget_tokens``; where none are named, as many of the usual ones as fit.

        ``everything``: 1, as the whole text has a check of its own, once its length is known. Raises BadOption for
        numbers that can never be right, and DoesNotFit for a question that passes the window.
        """
        if budget_tokens is not None:
            whole("budget_tokens", budget_tokens, 1)
        whole("max_new_tokens", max_new_tokens, 0)
        longest = self.longest(question_tokens, max_new_tokens)
        if longest < 1:
            raise DoesNotFit(
                f"question and instructions need {self.frame_tokens + question_tokens} tokens and {max_new_tokens} new "
                f"ones are asked for, but the model's window is {self.window}. Shorten the question: documents are "
                f"selected from, the question never is."
            )
        if everything:
            return 1
        return min(BUDGET_TOKENS, longest) if budget_tokens is None else budget_tokens

    def few(self, budget_tokens: int) -> tuple[str, ...]:
        """A warning where ``budget_tokens``, which nobody named, are fewer than the usual ones."""
        if budget_tokens >= BUDGET_TOKENS:
            return ()
        return (
            f"the window of {self.window} tokens has room for {budget_tokens} of the text, not for the usual "
            f"{BUDGET_TOKENS}: the answer may miss what stands elsewhere.",
        )

    def passed(self, tokens: int, budget_tokens: int | None) -> tuple[str, ...]:
        """A warning where all ``tokens`` of a text are kept and somebody wanted fewer."""
        if budget_tokens is None or tokens <= budget_tokens:
            return ()
        return (f"selector='all' keeps all {tokens} tokens, whatever budget_tokens={budget_tokens}.",)

    def check_budget(self, question_tokens: int, budget_tokens: int, max_new_tokens: int, reached: int) -> None:
        """Raises DoesNotFit when what a budget holds of a text passes the window.

        ``reached`` is how much of that prompt counts: a text shorter than its budget leaves room, and so does a policy
        that bounds distances.
        """
        if reached + max_new_tokens > self.window:
            raise DoesNotFit(
                f"budget_tokens={budget_tokens} leaves no room: with the question "
                f"({self.frame_tokens + question_tokens} tokens) and {max_new_tokens} new tokens the window of "
                f"{self.window} holds at most {self.longest(question_tokens, max_new_tokens)}."
            )

    def check_segment(self, question_tokens: int, longest_tokens: int) -> None:
        """Raises DoesNotFit when the longest segment of a document and the question pass the window together."""
        fixed = self.frame_tokens + question_tokens
        if fixed + longest_tokens > self.window:
            raise DoesNotFit(
                f"the document is read in segments of up to {longest_tokens} tokens, which with the question ({fixed}) "
                f"pass the window of {self.window}. Make the reader with segment_tokens="
                f"{max(1, self.window - fixed)} or less, compile again what was stored, or shorten the question."
            )

    def check_prompt(self, reached: tuple[int, str], max_new_tokens: int) -> None:
        """Raises DoesNotFit when a whole prompt and its answer pass the window.

        ``reached`` is how much of the prompt counts, and why that is all of it where a policy was to bound it.
        """
        prompt_tokens, why = reached
        if prompt_tokens + max_new_tokens > self.window:
            raise DoesNotFit(
                f"the prompt has {prompt_tokens} tokens and {max_new_tokens} new ones are asked for, but the "
                f"model's window is {self.window}. {f'{why} ' if why else ''}Lower budget_tokens or max_new_tokens, "
                f"choose a selector other than 'all', or read the text through kv='longheads', which holds what passes "
                f"the window."
            )
