"""Whether somebody can press a button, and how widgets are shown to them."""

import os
from collections.abc import Callable
from typing import Any

# A widget lives as long as the notebook's Python. Opened again, JupyterLab has an error in its
# place, in an output without any element in it: that is hidden, and what was left is shown, as long
# as no living panel is beside it. (A button without an icon has no element in it either.) Other
# front ends, which say so in their own way, show neither; where styles are not heard, as on GitHub,
# there are no widgets.
STYLE = """<style>
.left-of-a-panel {display: none}
.jp-OutputArea .left-of-a-panel {display: block}
.jp-OutputArea:has(.jupyter-widgets > *) .left-of-a-panel {display: none}
.jp-OutputArea .jp-OutputArea-output.jupyter-widgets:not(:has(*)) {display: none}
</style>"""
# ipywidgets writes a slider's name beside it, and tells it to no screen reader.
SLIDER_NAMES = """<script>
window.sliderNames ??= new MutationObserver(() => {
  for (const handle of document.querySelectorAll('.noUi-handle:not([aria-label])')) {
    const label = handle.closest('.widget-inline-hbox')?.querySelector('label');
    if (label) handle.setAttribute('aria-label', label.textContent);
  }
});
window.sliderNames.observe(document.body, {childList: true, subtree: true});
</script>"""
LEFT = "Here was a panel, which works while the notebook's Python runs: run this cell to have it."

Leave = Callable[[str], None]


def headless() -> bool:
    """True where no one can press a button: outside a notebook, under papermill or nbconvert, or
    with WORKBENCH_HEADLESS=1 (0: False).
    """
    asked = os.environ.get("WORKBENCH_HEADLESS", "")
    if asked in ("0", "1"):
        return asked == "1"
    try:
        from IPython import get_ipython

        # Runners of whole notebooks say that nobody is there to answer an input(); front ends say
        # that somebody is.
        return not get_ipython().get_parent()["content"]["allow_stdin"]
    except (ImportError, AttributeError, KeyError, TypeError):
        return True


def show(widget: Any) -> Leave:
    """Show a widget below the cell. Returns a function that is told, in HTML, what a notebook shows
    in its place when it is opened again.
    """
    from IPython.display import HTML, display

    def left(shown: str) -> HTML:
        words = f'<div class="left-of-a-panel"><p>{LEFT}</p>{shown}</div>'
        return HTML(STYLE + SLIDER_NAMES + words)

    _empty_tooltips(widget)
    display(widget)
    handle: Any = display(left(""), display_id=True)
    return lambda shown: handle.update(left(shown))


def _empty_tooltips(widget: Any) -> None:
    """Leave the tooltips empty that nobody wrote: ipywidgets shows them as "null"."""
    if widget.has_trait("tooltip") and widget.tooltip is None:
        widget.tooltip = ""
    for child in getattr(widget, "children", ()):
        _empty_tooltips(child)


def answer_at_once(widget: Any) -> None:
    """Let a click on `widget`, or a change of it, be heard while a cell is running.

    ipykernel 7.4 hands it to the shell that made the widget, which is busy with the cell; it is to
    go where the front end sent it.
    """
    if hasattr(widget.comm, "_reply_subshell_for"):
        widget.comm._reply_subshell_for = lambda _, sent_to: sent_to
