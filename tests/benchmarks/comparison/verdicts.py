"""What was aimed at, what was measured, and where somebody else is better."""

from __future__ import annotations

import math
import statistics
from typing import Any, NamedTuple

from benchmarks.comparison.contenders import DEFAULT, PEERS
from benchmarks.comparison.maps import EASY_CHEAP, EASY_COSTLY, EASY_MIDDLE, HARD

__all__ = ["OVERHEADS", "Verdict", "best_peer", "floor_share", "jax_best", "losses", "ratio", "verdicts"]

RATIOS = {EASY_CHEAP: 7.0, EASY_MIDDLE: 2.0, EASY_COSTLY: 1.1, HARD: 12.0}
"""How many times faster than the best torchdeq default, per group of maps."""

SHARES = {EASY_CHEAP: 0.45, EASY_MIDDLE: 0.75, EASY_COSTLY: 0.95}
"""Share of the time that f itself takes, per group of maps."""

OVERHEADS = {"fixed_point": 3.0, "anderson": 20.0}
"""Microseconds per evaluation beyond f, at B=32 N=64."""

ADJOINTS = (("small f", 5.0), ("rho .99", 10.0), ("transformer", 2.0))
ROW_LIMIT = 1.3
"""A bad row among 32 may add this many times what it costs alone."""

FIRST_RESORTS = ("newton_krylov", "fallback")


class Verdict(NamedTuple):
    """One target: what was asked, what was measured, whether it is met; None where nothing was measured."""

    what: str
    asked: str
    measured: str
    met: bool | None


def verdicts(record: dict[str, Any]) -> list[Verdict]:
    """Return a verdict per target that the record has numbers for.

    Examples:
        >>> overhead = [{"solver": "anderson", "per_evaluation_us": 15.0, "per_solve_us": 50.0, "f_us": 5.0}]
        >>> verdicts({"overhead": overhead})[0].met
        True
    """
    found = [*_speed(record.get("speed") or []), *_overheads(record.get("overhead") or [])]
    found += [*_rows(record.get("rows") or []), *_adjoints(record.get("adjoint") or [])]
    found += [*_quality(record.get("quality")), *_growth(record.get("growth") or [])]
    return [*found, *_jax(record)]


def best_peer(entries: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the fastest torchdeq default that solves every row, or None."""
    solved = [e for e in entries if e["solver"] in PEERS and e["solved"] and e["ms"]]
    return min(solved, key=lambda e: e["ms"], default=None)


def default_of(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the entry of our default."""
    return next(e for e in entries if e["solver"] == DEFAULT)


def ratio(one: dict[str, Any]) -> float | None:
    """Return how many times faster our default is than the best peer on a map; None where either does not solve it."""
    us, peer = default_of(one["entries"]), best_peer(one["entries"])
    return peer["ms"] / us["ms"] if us["solved"] and us["ms"] and peer else None


def floor_share(one: dict[str, Any], entry: dict[str, Any]) -> float | None:
    """Return evaluations times the cost of f over the time; None where nothing was timed."""
    return 1e3 * entry["evaluations"] * one["f_seconds"] / entry["ms"] if entry["ms"] else None


def jax_best(record: dict[str, Any], name: str, dtype: str) -> dict[str, Any] | None:
    """Return the fastest jax entry that solves a map, with ``f_seconds``; None where there is none."""
    for one in (record.get("jax") or {}).get("maps", []):
        if one["map"] == name and one["dtype"] == dtype:
            solved = [e for e in one["entries"] if e["solved"] and e["ms"]]
            if solved:
                return {**min(solved, key=lambda e: e["ms"]), "f_seconds": one["f_seconds"]}
    return None


def losses(record: dict[str, Any]) -> list[str]:
    """Return a sentence per thing in which our default is behind somebody, or fails."""
    said = []
    for one in [*(record.get("speed") or []), *(record.get("double") or [])]:
        us, name = default_of(one["entries"]), f"{one['map']} ({one['dtype']})"
        if not us["solved"]:
            said.append(f"{name}: the default does not solve it (true residual {us['residual']}).")
            continue
        rivals = [best_peer(one["entries"]), jax_best(record, one["map"], one["dtype"])]
        ahead = [e for e in rivals if e and e["ms"] < us["ms"]]
        if ahead:
            named = ", ".join(f"{e['solver']} {e['ms']:.3g} ms" for e in ahead)
            said.append(f"{name}: the default takes {us['ms']:.3g} ms, {named}.")
        own = [e for e in one["entries"] if e["solved"] and e["ms"] and e["solver"] not in PEERS]
        least = min(own, key=lambda e: e["ms"])
        if least["ms"] < 0.8 * us["ms"]:
            said.append(f"{name}: our own {least['solver']} is faster than the default, {least['ms']:.3g} ms.")
    quality = record.get("quality")
    if quality:
        for e in quality["entries"]:
            if e["solver"] == quality["default"] and not e["solved"]:
                said.append(f"{e['problem']} ({e['dtype']}): the default solves {e['good_rows']} of {e['rows']} rows.")
    return said


def _speed(maps: list[dict[str, Any]]) -> list[Verdict]:
    found = []
    for group, wanted in RATIOS.items():
        members = [one for one in maps if one["group"] == group]
        ratios = [r for one in members if (r := ratio(one)) is not None]
        failed = sum(not default_of(one["entries"])["solved"] for one in members)
        if ratios:
            asked = f"{wanted:g} times the best torchdeq default"
            met = failed == 0 and min(ratios) >= wanted
            found.append(Verdict(f"time, {group}", asked, _spread(ratios, "x"), met))
        shares = [s for one in members if (s := floor_share(one, default_of(one["entries"]))) is not None]
        if group in SHARES and shares:
            met = min(shares) >= SHARES[group]
            found.append(Verdict(f"share of f, {group}", f"at least {SHARES[group]:g}", _spread(shares, ""), met))
    return found


def _overheads(rows: list[dict[str, Any]]) -> list[Verdict]:
    found = []
    for one in rows:
        wanted = OVERHEADS.get(one["solver"])
        if wanted is not None:
            us = one["per_evaluation_us"]
            what = f"{one['solver']}: time per evaluation beyond f, B=32 N=64"
            found.append(Verdict(what, f"at most {wanted:g} us", f"{us:.1f} us", us <= wanted))
    return found


def _rows(rows: list[dict[str, Any]]) -> list[Verdict]:
    found = []
    for one in rows:
        extra = (one["together"] - one["others"]) / one["alone"]
        what = f"one row of 32 {one['row']}"
        measured = f"adds {1e3 * (one['together'] - one['others']):.2f} ms, alone {1e3 * one['alone']:.2f} ms"
        met = one["entry"]["solved"] and extra <= ROW_LIMIT
        found.append(Verdict(what, f"adds at most {ROW_LIMIT:g} times what it costs alone", measured, met))
    return found


def _adjoints(maps: list[dict[str, Any]]) -> list[Verdict]:
    found = []
    for start, wanted in ADJOINTS:
        for one in maps:
            if not one["map"].startswith(start):
                continue
            us, *rest = one["entries"]
            best = min((e["backward_ms"] for e in rest if not e["message"] and e["reaches"]), default=None)
            asked = f"{wanted:g} times torchdeq, converged"
            measured = "no torchdeq setting reaches the tolerance"
            if best is not None:
                measured = f"{best / us['backward_ms']:.2g}x ({us['backward_ms']:.3g} against {best:.3g} ms)"
            met = us["reaches"] and (best is None or best / us["backward_ms"] >= wanted)
            found.append(Verdict(f"backward, {one['map']}", asked, measured, met))
    return found


def _quality(quality: dict[str, Any] | None) -> list[Verdict]:
    if not quality or not quality["entries"]:
        return []
    solved: dict[tuple[str, str], set[str]] = {}
    for e in quality["entries"]:
        solved.setdefault((e["problem"], e["dtype"]), set()).update([e["solver"]] if e["solved"] else [])
    resorts = {quality["default"], *FIRST_RESORTS}
    good = sum(bool(names & resorts) for names in solved.values())
    behind = [key for key, names in solved.items() if names and not names & resorts]
    tried = f"default, {' or '.join(FIRST_RESORTS)}"
    return [
        Verdict(f"problems solved by {tried}", "all", f"{good} of {len(solved)}", good == len(solved)),
        Verdict("problems that a peer solves and we do not", "none", str(len(behind)), not behind),
    ]


def _growth(rows: list[dict[str, Any]]) -> list[Verdict]:
    found = []
    for one in rows:
        known = [s for s in one["states"] if s is not None]
        if one["solver"] not in PEERS and known:
            what = f"memory of {one['solver']}, {one['budgets'][0]} to {one['budgets'][-1]} evaluations allowed"
            measured = f"{known[0]:.1f} to {known[-1]:.1f} states"
            found.append(Verdict(what, "does not grow", measured, known[-1] <= 1.05 * known[len(known) // 2]))
    return found


def _jax(record: dict[str, Any]) -> list[Verdict]:
    ratios = []
    for one in [*(record.get("speed") or []), *(record.get("double") or [])]:
        us, them = default_of(one["entries"]), jax_best(record, one["map"], one["dtype"])
        if them and us["solved"] and us["ms"]:
            ratios.append(them["ms"] / us["ms"])
    if not ratios:
        return []
    mean = statistics.geometric_mean(ratios)
    what = "time against the best of jitted jaxopt and optimistix, per map"
    return [Verdict(what, "1 time, geometric mean", _spread(ratios, "x"), mean >= 1)]


def _spread(values: list[float], unit: str) -> str:
    mean = statistics.geometric_mean(max(v, math.ulp(1.0)) for v in values)
    return f"{mean:.2g}{unit} geometric mean, {min(values):.2g} to {max(values):.2g}{unit}, {len(values)} maps"
