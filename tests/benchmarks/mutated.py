"""Which files mutants are planted in, part by part, and which tests have to notice."""

from __future__ import annotations

from pathlib import Path

__all__ = ["PARTS", "tests_near"]

SOLVERS = "solvers/deqlm_solvers"


def solver_tests(*names: str) -> list[str]:
    return [f"solvers/test_{name}.py" for name in names]


def files(folder: str, *names: str) -> list[str]:
    return [f"{folder}/{name}" if "." in name else f"{folder}/{name}.py" for name in names]


LOOP = solver_tests(
    *(
        "statuses",
        "stop",
        "measure",
        "schedule",
        "runaway",
        "mixed_rows",
        "compact",
        "at_once",
        "rows",
        "cost",
        "compiled_step",
    ),
    *("magnitudes", "inputs", "best_f", "newton", "newton_krylov", "deer"),
)
SECANT = solver_tests(
    *(
        "fixed_point",
        "anderson",
        "broyden",
        "compiled_step",
        "wild_points",
        "repelling_roots",
        "fitted",
        "magnitudes",
        "contract",
    ),
)
NEWTON = solver_tests(
    *("newton", "newton_krylov", "dogleg", "trial_points", "gmres", "linalg", "fallback", "fallback_rows"),
    *("fallback_members", "contract"),
)
GRADIENTS = [
    f"gradients/test_{name}.py"
    for name in (
        *("implicit", "phantom", "one_step", "unrolled", "second_order", "failed_rows", "mixed_rows", "masked"),
        *("backward_choice", "functional", "left_behind", "overflow", "same_value", "truth", "contract"),
    )
]
ROWS = [
    *("test_rows.py", "deq/test_deq.py", "deq/test_compact.py", "deq/test_noise.py", "deq/test_buffers.py"),
    *("deq/test_wrap_anything.py", "deq/test_kinds.py", "deq/test_bad_input.py", "gradients/test_failed_rows.py"),
    "gradients/test_masked.py",
]
TOKENS = [
    *(
        "deq/test_modes.py",
        "deq/test_sizes.py",
        "deq/test_frontier.py",
        "deq/test_causal.py",
        "models/test_frontier.py",
    ),
    *("models/test_modes.py", "models/test_at_once.py"),
]
FUZZ = "fuzz/test_solves.py"

NEAR = {
    "loop": ("rows", "stop", "inputs", "compact"),
    "torch_backend": ("compact", "rows"),
    "tracker": ("best_f", "statuses", "stop", "mixed_rows", "rows"),
    "evaluator": ("cost", "inputs", "newton", "newton_krylov", "deer"),
    "subset": ("compact",),
    "plain_phase": ("anderson", "repelling_roots", "compiled_step"),
    "secant": ("wild_points", "anderson", "broyden", "compiled_step"),
    "damping": ("fitted", "wild_points", "compiled_step"),
    "read.h": ("compiled_step",),
    "step.cpp": ("compiled_step", "mixed_rows"),
    "secant.h": ("compiled_step",),
    "watch.h": ("compiled_step",),
    "damping.h": ("compiled_step",),
    "products.h": ("compiled_step",),
    "systems.h": ("compiled_step",),
    "dense": ("newton", "dogleg"),
    "implicit": ("second_order",),
    "rows": ("compact",),
    "criterion": ("measure",),
    "norms": ("measure", "magnitudes"),
    "small_systems": ("linalg",),
    "decision": ("repelling_roots",),
    "functional": ("deq", "rows"),
    "replay": ("noise", "buffers"),
    "line_search": ("newton", "newton_krylov", "trial_points"),
    "attempts": ("fallback", "fallback_rows", "fallback_members"),
    "broyden": ("fitted",),
    "anderson": ("fitted",),
    "base": ("same_value", "failed_rows"),
    "adjoint": ("implicit", "overflow", "masked"),
    "linear_solve": ("implicit", "backward_choice", "overflow"),
    "trees": ("rows",),
    "cuts": ("failed_rows", "rows"),
    "held": ("masked",),
    "failures": ("deq", "failed_rows"),
    "chunks": ("modes", "sizes"),
    "chunked_solve": ("modes", "sizes"),
    "chunk_evaluator": ("modes", "causal"),
    "frozen_prefix": ("frontier",),
}
"""Tests that a file is likeliest to be caught by, besides one of its own name."""

PARTS: dict[str, tuple[list[str], list[str]]] = {
    "loop": (
        [
            *files(f"{SOLVERS}/loop", "loop", "torch_backend", "tracker", "criterion", "schedule", "evaluator"),
            *files(f"{SOLVERS}/loop", "subset", "runaway"),
            *files(f"{SOLVERS}/core", "norms"),
        ],
        [*LOOP, FUZZ],
    ),
    "compiled loop": (files(f"{SOLVERS}/native", "read.h", "step.cpp"), [*LOOP, FUZZ]),
    "secant": (
        files(
            f"{SOLVERS}/methods",
            *("secant", "anderson", "broyden", "plain_phase", "decision", "damping", "fixed_point"),
        ),
        [*SECANT, FUZZ],
    ),
    "compiled secant": (
        files(f"{SOLVERS}/native", "secant.h", "watch.h", "damping.h", "products.h", "systems.h"),
        [*SECANT, FUZZ],
    ),
    "newton": (
        [
            *files(f"{SOLVERS}/methods", "newton", "newton_krylov", "dogleg", "dense", "attempts"),
            *files(f"{SOLVERS}/linalg", "line_search", "gmres", "small_systems"),
        ],
        [*NEWTON, FUZZ],
    ),
    "gradients": (
        files("deqlm/gradients", "base", "implicit", "adjoint", "linear_solve", "phantom", "one_step", "unrolled"),
        GRADIENTS,
    ),
    "rows": (
        [
            *files("deqlm/wrap", "rows", "trees", "cuts", "held", "replay", "buffers", "failures"),
            *files("deqlm", "functional"),
            *files("deqlm/equilibrium", "call", "rows", "settings"),
        ],
        ROWS,
    ),
    "chunks and window": (
        files("deqlm/sequence", "chunks", "chunked_solve", "chunk_evaluator", "frontier", "frozen_prefix"),
        TOKENS,
    ),
}


def tests_near(part: str, file: str) -> tuple[list[str], list[str]]:
    """Return the tests that are near a file, and the others of its part."""
    path = Path(file)
    names = {path.stem, *NEAR.get(path.stem, ()), *NEAR.get(path.name, ())}
    tests = PARTS[part][1]
    near = [test for test in tests if Path(test).stem.removeprefix("test_") in names]
    assert near, f"no test of part {part!r} is near {file}"
    return near, [test for test in tests if test not in near] or near
