"""A checkpoint is whole or it is not there; whatever else lies in its place is refused with its reason."""

from __future__ import annotations

import enum
import errno
import hashlib
import io
import math
import os
import pickle
import resource
import signal
import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deqlm.training import CheckpointError, checkpoints, load_checkpoint, save_checkpoint, write_atomically
from deqlm.training.experiment import differences

STATE = {"weights": torch.arange(1000.0), "step": 3, "names": ["a", ("b", None)], 7: {"on": True, "rate": 0.5}}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_is_loaded(tmp_path):
    path = save_checkpoint(tmp_path / "new" / "folder", 3, STATE, experiment={"a": 1})
    step, state = load_checkpoint(path)
    assert step == 3
    assert torch.equal(state.pop("weights"), STATE["weights"])
    assert state == {key: value for key, value in STATE.items() if key != "weights"}


def test_the_newest_stay(tmp_path):
    for step in (1, 20, 100_000_000, 3):
        path = save_checkpoint(tmp_path, step, {"step": step}, keep=2)
        assert path.exists()
    assert names(tmp_path) == ["step-00000003.ckpt", "step-00000020.ckpt", "step-100000000.ckpt"]
    assert [load_checkpoint(path)[0] for path in checkpoints(tmp_path)] == [3, 20, 100_000_000]
    save_checkpoint(tmp_path, 100_000_001, {}, keep=1)
    assert names(tmp_path) == ["step-100000001.ckpt"]


def test_other_files_are_left_alone(tmp_path):
    for name in ("step-1.ckpt", "notes.txt", "best.ckpt"):
        (tmp_path / name).touch()
    save_checkpoint(tmp_path, 1, {}, keep=1)
    save_checkpoint(tmp_path, 2, {}, keep=1)
    assert names(tmp_path) == ["best.ckpt", "notes.txt", "step-00000002.ckpt", "step-1.ckpt"]


def test_a_folder_that_is_missing_has_no_checkpoints(tmp_path):
    assert checkpoints(tmp_path / "none") == []


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("intact"), 1, {"weights": torch.arange(40.0)})


@given(st.data())
def test_any_cut_and_any_changed_byte_is_noticed(intact, data):
    content = intact.read_bytes()
    at = data.draw(st.integers(0, len(content) - 1))
    damaged = intact.with_name("damaged.ckpt")
    damaged.write_bytes(content[:at])
    with pytest.raises(CheckpointError, match=r"damaged.ckpt is truncated.*other checkpoints here: step-00000001.ckpt"):
        load_checkpoint(damaged)
    flip = data.draw(st.integers(1, 255))
    damaged.write_bytes(content[:at] + bytes([content[at] ^ flip]) + content[at + 1 :])
    with pytest.raises(CheckpointError, match=r"damaged.ckpt (was changed|is (truncated|too long|no checkpoint))"):
        load_checkpoint(damaged)


def test_foreign_files_are_refused(tmp_path):
    torch.save({"weights": torch.ones(2)}, tmp_path / "torch.pt")
    (tmp_path / "text").write_text("hello")
    for path in tmp_path.iterdir():
        with pytest.raises(CheckpointError, match=f"{path.name} is no checkpoint of deqlm"):
            load_checkpoint(path)
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "none")


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def test_code_in_a_file_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TypeError, match=r"got Harmful at state.parts\[1\]"):
        save_checkpoint(tmp_path, 1, {"parts": [1, Harmful()]})
    monkeypatch.setattr("deqlm.training.checkpoint._check_plain", lambda *_: None)
    path = save_checkpoint(tmp_path, 1, {"harm": Harmful()})
    with pytest.raises(CheckpointError, match="holds something else than a checkpoint"):
        load_checkpoint(path)
    assert not (tmp_path / "harm").exists()


def test_a_right_checksum_does_not_make_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "save", lambda content, file: pickle.dump([1, 2], file, 2))
    path = save_checkpoint(tmp_path, 1, {})
    with pytest.raises(CheckpointError, match="holds something else than a checkpoint"):
        load_checkpoint(path)


def seal(folder, payload, version=b"1"):
    path = folder / "step-00000001.ckpt"
    header = b"deqlm-checkpoint-%b %b %020d\n" % (version, hashlib.sha256(payload).hexdigest().encode(), len(payload))
    path.write_bytes(header + payload)
    return path


def saved(content):
    payload = io.BytesIO()
    torch.save(content, payload)
    return payload.getvalue()


CYCLE: dict[str, object] = {}
CYCLE["again"] = CYCLE
CONTENT = {"step": 1, "experiment": None, "state": {"w": torch.ones(1000)}}
NONSENSE = {
    "empty": (b"", "EOF|Ran out of input|Invalid"),
    "noise": (bytes(range(256)), ""),
    "cut before sealing": (saved(CONTENT)[:-200], ""),
    "a tensor": (saved(torch.ones(2)), "must be step, experiment, state, got a Tensor"),
    "a list": (saved([1, 2]), "got a list"),
    "without a state": (saved({"step": 1, "experiment": None}), r"got \['experiment', 'step'\]"),
    "with more": (saved({**CONTENT, "more": 1}), "'more'"),
    **{
        f"step {step}": (saved({**CONTENT, "step": step}), "step must be a whole number >= 0")
        for step in ("five", math.nan, -1, True, 1.0, None)
    },
    "state is a tensor": (saved({**CONTENT, "state": torch.ones(2)}), "state must be a dict, got 'Tensor'"),
    "state is None": (saved({**CONTENT, "state": None}), "state must be a dict, got 'NoneType'"),
    "a set": (saved({**CONTENT, "state": {"a": [{1}]}}), r"got set at a\[0\]"),
    "a key": (saved({**CONTENT, "state": {1.5: 0}}), "keys of state must be text"),
    "a cycle": (saved({**CONTENT, "state": CYCLE}), "recursion"),
    "experiment": (saved({**CONTENT, "experiment": {"lr": torch.ones(1)}}), "experiment must be JSON data"),
    "experiment is text": (saved({**CONTENT, "experiment": "mine"}), "experiment must be a mapping"),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_sealed_nonsense_is_refused(tmp_path, name):
    payload, said = NONSENSE[name]
    path = seal(tmp_path, payload)
    for experiment in (None, {"lr": 0.1}):
        with pytest.raises(CheckpointError, match=f"step-00000001.ckpt holds something else.*({said})"):
            load_checkpoint(path, experiment=experiment)


def test_a_checkpoint_of_another_version_says_so(tmp_path):
    path = seal(tmp_path, saved(CONTENT), version=b"12")
    with pytest.raises(CheckpointError, match="is a checkpoint of version 12; this deqlm reads version 1"):
        load_checkpoint(path)


class Colour(enum.IntEnum):
    RED = 1


@pytest.mark.parametrize(
    "value",
    [np.float64(0.5), np.int64(1), np.str_("a"), np.ones(2), Colour.RED, time.gmtime(0), defaultdict(int), {1}, b"a"],
    ids=lambda value: type(value).__name__,
)
def test_what_could_not_be_read_back_is_not_saved(tmp_path, value):
    with pytest.raises(TypeError, match=rf"got {type(value).__name__} at state.deep\[0\]"):
        save_checkpoint(tmp_path, 1, {"deep": [value]})
    assert not names(tmp_path)


def test_a_state_that_holds_itself_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="state must be finite, and holds itself"):
        save_checkpoint(tmp_path, 1, {"cycle": CYCLE})


@pytest.mark.parametrize("experiment", [{"lr": torch.ones(1)}, "mine", {"f": save_checkpoint}])
def test_an_experiment_is_json(tmp_path, experiment):
    with pytest.raises(TypeError, match="experiment must be"):
        save_checkpoint(tmp_path, 1, {}, experiment=experiment)


def test_a_part_of_a_tensor_is_saved_alone(tmp_path):
    big = torch.arange(100_000.0)
    module = torch.nn.BatchNorm1d(3)
    state = {
        "view": big[10:12],
        "steps": [big[::50_000]],
        "parameter": torch.nn.Parameter(big[:2], requires_grad=False),
        "expanded": torch.ones(1).expand(1000),
        "sparse": torch.eye(2).to_sparse(),
        "module": module.state_dict(),
        "counted": Counter("aab"),
    }
    path = save_checkpoint(tmp_path, 1, state)
    assert path.stat().st_size < 20_000
    found = load_checkpoint(path)[1]
    assert torch.equal(found["view"], big[10:12])
    assert torch.equal(found["steps"][0], big[::50_000])
    assert type(found["parameter"]) is torch.nn.Parameter
    assert not found["parameter"].requires_grad
    assert found["expanded"].untyped_storage().nbytes() == 4
    assert torch.equal(found["sparse"].to_dense(), torch.eye(2))
    assert found["module"]._metadata == module.state_dict()._metadata
    assert found["counted"] == Counter("aab")
    assert state["view"].untyped_storage().nbytes() == 400_000, "what is saved is left as it is"


def test_tensors_of_one_storage_stay_so(tmp_path):
    shared = torch.ones(4)
    found = load_checkpoint(save_checkpoint(tmp_path, 1, {"a": shared, "b": shared.view(2, 2)}))[1]
    assert found["a"].data_ptr() == found["b"].data_ptr()


def test_another_experiment_is_refused_by_the_names_of_its_fields(tmp_path):
    there = {"options": {"lr": 0.1, "betas": (0.9, 0.95)}, "stages": [{"length": 2}, {"length": 4}], "seed": 0}
    path = save_checkpoint(tmp_path, 1, {}, experiment=there)
    assert load_checkpoint(path, experiment=there) == (1, {})
    here = {"options": {"lr": 0.2, "betas": (0.9, 0.95)}, "stages": [{"length": 2}, {"length": 8}], "clip": 1}
    message = (
        r"another experiment: clip is missing there and 1 here; options.lr is 0.1 there and 0.2 here; "
        r"seed is 0 there and missing here; stages\[1\].length is 4 there and 8 here$"
    )
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path, experiment=here)


def test_many_differences_are_counted():
    text = differences({str(i): 0 for i in range(20)}, {})
    assert text.endswith("; and 13 more fields")  # the empty mapping is a field of its own
    assert differences({"a": [1, [2]], "b": {}}, {"a": (1, (2,)), "b": {}}) == ""


def test_an_option_that_came_later_is_no_difference_while_it_is_off():
    assert differences({"a": 1}, {"a": 1, "window": None, "data": {"openings": False}}) == ""
    assert differences({"a": 1, "window": None}, {"a": 1}) == ""
    assert "window is missing there and 2 here" in differences({"a": 1}, {"a": 1, "window": 2})
    assert "window is null there and false here" in differences({"window": None}, {"window": False})


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_disk_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    (tmp_path / "file.part").symlink_to("/dev/full")
    with pytest.raises(
        OSError, match=r"could not write .*file: No space left on device; what was saved before is"
    ) as e:
        write_atomically(path, b"new" * 10_000)
    assert e.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def then_die(function):
    return lambda *given: (function(*given), die())


HOOKS = {
    "before fsync": lambda: setattr(os, "fsync", die),
    "before replace": lambda: setattr(os, "replace", die),
    "after replace": lambda: setattr(os, "replace", then_die(os.replace)),
    "after unlink": lambda: setattr(Path, "unlink", then_die(Path.unlink)),
    "file size": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
}


def save_and_end(folder, hook):
    """Save three times in a process of its own, the third time with a hook; return how it ended."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    ended = 1
    try:
        for step in (1, 2, 3):
            if step == 3:
                hook()
            save_checkpoint(folder, step, {"weights": torch.full((20_000,), float(step))})
    except OSError as error:
        ended = error.errno
    finally:
        os._exit(ended)


# the child of a process with threads only writes files
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_kill_or_a_full_disk_in_the_middle_of_a_save_loses_nothing(tmp_path):
    ended = {name: save_and_end(tmp_path / name, hook) for name, hook in HOOKS.items()}
    assert ended == {**dict.fromkeys(HOOKS, -signal.SIGKILL), "file size": errno.EFBIG}
    kept = {folder.name: [load_checkpoint(path) for path in checkpoints(folder)] for folder in tmp_path.iterdir()}
    steps = {name: [step for step, _ in found] for name, found in kept.items()}
    assert steps == {
        "before fsync": [1, 2],
        "before replace": [1, 2],
        "after replace": [1, 2, 3],
        "after unlink": [2, 3],
        "file size": [1, 2],
    }
    for found in kept.values():
        assert all((state["weights"] == step).all() for step, state in found)
    # the next save takes the remains away
    assert (tmp_path / "before fsync/step-00000003.ckpt.part").exists()
    save_checkpoint(tmp_path / "before fsync", 4, {})
    assert names(tmp_path / "before fsync") == ["step-00000002.ckpt", "step-00000004.ckpt"]


def test_bad_numbers_are_refused(tmp_path):
    with pytest.raises(ValueError, match="keep must be a whole number >= 1"):
        save_checkpoint(tmp_path, 1, {}, keep=0)
    with pytest.raises(ValueError, match="step must be a whole number >= 0"):
        save_checkpoint(tmp_path, -1, {})
    with pytest.raises(ValueError, match=r"keys of state must be text or whole numbers, got 1.5"):
        save_checkpoint(tmp_path, 1, {1.5: 0})
