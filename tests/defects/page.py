"""The page of the documentation that lists the table; run as a module, it writes the page."""

from __future__ import annotations

from pathlib import Path

from defects.defect import Defect
from defects.stranger import GROUPS, Stranger
from defects.strangers import STRANGERS
from defects.table import DEFECTS

__all__ = ["page"]

KINDS = {
    "silent": "silently wrong",
    "crash": "crash or hang",
    "slow": "slower than needed",
    "interface": "interface",
}

HEAD = """\
# What torchdeq does, and what we do

Known defects of the libraries that solve fixed points, most of them of torchdeq 0.1.0, with what deqlm does in the same
situation. Every line is a pair of checks in `tests/defects`: one fails where deqlm breaks its rule, the other runs the
peer beside it and fails where the defect is not there. To run them:

```bash
pytest tests/defects                 # a few seconds
pytest tests/defects -m slow         # the one that hangs
```

"Both" means that both checks run; "ours" that only the rule is checked, for a reason given under the tables; "theirs,
ours later" that the feature is not written yet, and its check comes with it. This page is written from the table of the
tests.

At its end stand [the faults of our own](#found-by-strangers).
"""

STRANGERS_HEAD = """\
Version 0.1 was tried with other people's layers, bug reports, problems, clients and attacks. What follows is what it
did wrong, with the numbers that were seen then, what holds now, and the test below `tests/` that fails where the fault
is back.
"""


def page() -> str:
    """Return the page."""
    numbered = [defect for defect in DEFECTS if not defect.id.startswith("V")]
    verified = [defect for defect in DEFECTS if defect.id.startswith("V")]
    parts = [
        HEAD,
        "## torchdeq 0.1.0, defects 1 to 43\n",
        _table(numbered),
        "## Defects V1 to V26 of torchdeq and others\n",
        "Some of these are among those above, found a second time.\n",
        _table(verified, peers=True),
        "## What is not checked\n",
        _remarks(),
        "## Found by strangers\n",
        STRANGERS_HEAD,
        *(_faults(group) for group in GROUPS),
    ]
    return "\n".join(parts)


def _table(defects: list[Defect], peers: bool = False) -> str:
    lines = ["| no. | kind | what it does | what deqlm does | checked |", "|---|---|---|---|---|"]
    for defect in defects:
        whose = f"{defect.peer}: " if peers and not defect.peer.startswith("torchdeq") else ""
        lines.append(
            f"| {defect.id} | {KINDS[defect.kind]} | {whose}{defect.does} | {defect.rule} | {_checked(defect)} |"
        )
    return "\n".join(lines) + "\n"


def _checked(defect: Defect) -> str:
    if defect.ours is None:
        return "later" if defect.theirs is None else "theirs, ours later"
    return "ours" if defect.theirs is None else "both"


def _remarks() -> str:
    lines = []
    for subject in dict.fromkeys(defect.later for defect in DEFECTS if defect.later):
        lines.append(f'- Ours later, with "{subject}": {_ids(later=subject)}.')
    for note in dict.fromkeys(defect.note for defect in DEFECTS if defect.note):
        lines.append(f"- Theirs {note}: {_ids(note=note)}.")
    return "\n".join(lines) + "\n"


def _ids(**wanted: str) -> str:
    return ", ".join(d.id for d in DEFECTS if all(getattr(d, key) == value for key, value in wanted.items()))


def _faults(group: str) -> str:
    head = f"### {GROUPS[group]}\n\n| what version 0.1 did | what holds now | shown by |\n|---|---|---|\n"
    return head + "\n".join(_fault(stranger) for stranger in STRANGERS if stranger.group == group) + "\n"


def _fault(stranger: Stranger) -> str:
    file, test = stranger.shown.split("::")
    return f"| {stranger.was} | {stranger.now} | `{file}`<br>`{test}` |"


if __name__ == "__main__":
    (Path(__file__).resolve().parents[2] / "docs/defects.md").write_text(page())
