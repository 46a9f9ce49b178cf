"""Why a name is allowed or blocked: each word that was said on the way, and which one decided. For people.

Holds the walk through the same state that `Engine.decide` uses, and its words. Opens no file: where an entry stands in
its list is found by a function that the caller brings (the image keeps no lines).
Rule: `explain(...).decision` is what `Engine.decide` answers, always.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from policy.engine import Engine, Masks
from policy.image import Effect, Kind, Scope
from policy.names import suffixes, to_unicode
from policy.verdict import Decision, Verdict

FindLine = Callable[[str, bytes], "tuple[str, int] | None"]
"""List (a slot's name) and entry -> file and line; None: not to be found here."""

_LEVELS = {4: "never blocked", 3: "override", 2: "rule", 1: "bypass signal"}
_KINDS = {
    Kind.BLOCK: "blocks",
    Kind.ALLOW: "allows",
    Kind.IMPORTANT_BLOCK: "blocks (important)",
    Kind.IMPORTANT_ALLOW: "allows (important)",
}


class Step(NamedTuple):
    """One thing that somebody says about the name."""

    source: str
    """`rule:x`, `list:x`, `override:3`, `bypass:doh`, …"""
    matched: str
    """The name or parent that it speaks of."""
    says: str
    counts: bool
    """False: not for this group, or not for this name but for what is above or below it."""
    file: str = ""
    line: int = 0
    """0: not known."""


class Explanation(NamedTuple):
    """All of it."""

    name: str
    group: str
    decision: Decision
    steps: tuple[Step, ...]
    schedules: tuple[str, ...]
    """Open now."""
    until_s: float
    """Up to when it holds."""

    def text(self) -> str:
        """For a terminal."""
        decision = self.decision
        verdict = decision.verdict.name.lower()
        because = decision.reason.name.lower().replace("_", " ")
        rows = [
            f"{self.name} for group {self.group}: {verdict} ({because}{', ' if decision.rule else ''}{decision.rule})"
        ]
        if decision.verdict is Verdict.REWRITE:
            rows.append(f"  answered with the records of {decision.target}")
        if self.schedules:
            rows.append(f"  open windows: {', '.join(self.schedules)}")
        winner = True
        for step in self.steps:
            decides = winner and step.counts and step.source == decision.rule
            mark = "=>" if decides else "  "
            winner = winner and not decides
            place = f"  [{step.file}:{step.line}]" if step.line else ""
            aside = "" if step.counts else "  (does not count here)"
            rows.append(f"{mark} {step.source:<28} {step.matched:<32} {step.says}{aside}{place}")
        if not self.steps:
            rows.append("   nothing is said about it: the group's default holds")
        return "\n".join(rows)


def explain(
    engine: Engine, name: bytes, group: int, now_s: float | None, find_line: FindLine | None = None
) -> Explanation:
    """Explain a decision about a name in the form that `Engine.decide` wants."""
    decision = engine.decide(name, group, now_s)
    steps = [*_pin_steps(engine, name, group, now_s), *_list_steps(engine, name, group, now_s, find_line)]
    state = engine.state_at(group, now_s)
    if state.default.rule:
        steps.append(Step(state.default.rule, "everything", _verb(state.default), True))
    rewrite = state.safe.get(name)
    if rewrite is not None:
        steps.append(Step(rewrite.rule, name.decode("ascii", "replace"), f"answers with {rewrite.target}", True))
    return Explanation(
        name=to_unicode(name) or "(no name)",
        group=engine.treatment(group).group,
        decision=decision,
        steps=tuple(steps),
        schedules=tuple(sorted(engine.open_schedules(group, now_s))),
        until_s=engine.valid_until(group, now_s),
    )


def _pin_steps(engine: Engine, name: bytes, group: int, now_s: float | None) -> Iterator[Step]:
    found = []
    wanted = Scope.SELF
    state = engine.state_at(group, now_s)
    for suffix in suffixes(name):
        for pin in state.explicit.get(suffix, ()):
            source = pin.decision.rule or _LEVELS[pin.level]
            says = f"{_verb(pin.decision)} ({_LEVELS[pin.level]})"
            found.append((-pin.level, Step(source, _shown(suffix), says, bool(pin.scope & wanted))))
        wanted = Scope.BELOW
    yield from (step for _, step in sorted(found, key=lambda item: item[0]))


def _list_steps(
    engine: Engine, name: bytes, group: int, now_s: float | None, find_line: FindLine | None
) -> Iterator[Step]:
    state = engine.state_at(group, now_s)
    for number, image in enumerate(engine.images):
        wanted = Scope.SELF
        for suffix in suffixes(name):
            key = image.find(suffix)
            for effect in image.effects(key) if key else ():
                slot = image.slots[effect.slot]
                place = find_line(slot.name, suffix) if find_line else None
                says = f"{_KINDS.get(effect.kind, 'nothing')} {_reach(effect)}, category {slot.category}"
                counts = bool(effect.scope & wanted) and _is_for(effect, state.masks[number])
                yield Step(f"list:{slot.name}", _shown(suffix), says, counts, *(place or ("", 0)))
            wanted = Scope.BELOW


def _is_for(effect: Effect, masks: Masks) -> bool:
    mask = masks.block | masks.allow | (masks.log if effect.kind in (Kind.BLOCK, Kind.IMPORTANT_BLOCK) else 0)
    return bool(mask >> effect.slot & 1)


def _reach(effect: Effect) -> str:
    return {Scope.SELF: "this name only", Scope.BELOW: "names below it"}.get(effect.scope, "it and what is below")


def _verb(decision: Decision) -> str:
    return {Verdict.ALLOW: "allows", Verdict.BLOCK: "blocks"}.get(decision.verdict, decision.verdict.name.lower())


def _shown(name: bytes) -> str:
    return name.decode("ascii", "replace")
