"""A prediction, asked for before a result and shown beside it afterwards."""

from html import escape
from typing import Any

from lib.plots.figure import number
from lib.widgets.showing import answer_at_once, headless, show

NOT_ASKED = "no prediction yet"


class Prediction:
    """What somebody predicts: one of `choices`, or a number where there are none.

    Nobody has to: without an answer, or without somebody who could give one, `beside` says nothing.
    """

    def __init__(self, question: str, *choices: str):
        self.question, self.choices = question, choices
        self.field: Any = None

    def ask(self) -> None:
        """Show the question with its field below the cell."""
        import ipywidgets as w

        named = {"tooltip": self.question}  # by it a screen reader calls the field
        if self.choices:
            options = [NOT_ASKED, *self.choices]
            self.field = w.Dropdown(options=options, layout={"width": "max-content"}, **named)
        else:
            self.field = w.Text(placeholder=NOT_ASKED, **named)
        answer_at_once(self.field)
        words = w.HTML(f"<b>Predict first:</b> {escape(self.question)}")
        leave = show(w.VBox([words, self.field]))
        self.field.observe(lambda _: leave(self._said()), "value")

    @property
    def answer(self) -> str:
        """What was predicted; empty where nothing was."""
        value = self.field.value.strip() if self.field else ""
        return "" if value == NOT_ASKED else value

    def _said(self) -> str:
        return escape(f"{self.question} You predicted: {self.answer or 'nothing'}.")

    def beside(self, result: str | float) -> None:
        """Show the prediction beside what came out: a choice, a number, or a sentence."""
        if not self.answer:
            return
        found = result if isinstance(result, str) else number(result)
        print(f"{self.question} You predicted: {self.answer}. It is: {found}.")


def predict(question: str, *choices: str) -> Prediction:
    """Ask for a prediction below the cell: one of `choices`, or a number. Its `beside(result)`
    shows it later beside what came out.

        guess = predict("How many numbers do A and B have together?")
        guess.beside(A.numel() + B.numel())
    """
    asked = Prediction(question, *choices)
    if headless():
        print(f"Predict first: {question}")
    else:
        asked.ask()
    return asked
