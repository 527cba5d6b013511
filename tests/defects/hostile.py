"""Faults of our own version 0.1: crashes, corruption, and input that was taken or refused without clear words."""

from __future__ import annotations

from defects.stranger import Stranger

__all__ = ["INPUT"]

INPUT = (
    Stranger(
        group="input",
        was="A solve on the CPU under another default device (`torch.set_default_device`) ended in a segmentation "
        "fault.",
        now="Every tensor is made on the device of the state.",
        shown="solvers/test_compiled_step.py::test_the_default_device_is_not_asked",
    ),
    Stranger(
        group="input",
        was="Models gave six different answers or errors under another default device.",
        now="Defaults of torch leave a call alone.",
        shown="models/test_inputs.py::test_defaults_of_torch_leave_a_call_alone",
    ),
    Stranger(
        group="input",
        was="`memory` of 2**61 and more, also from a config.json, wrapped in the size of a workspace: heap "
        "corruption, or a quiet wrong answer; 2**64 + 3 meant 3.",
        now="Whole numbers are at most 2**31 - 1, checked at birth.",
        shown="solvers/test_options.py::test_whole_numbers_are_bounded_by_what_an_index_holds",
    ),
    Stranger(
        group="input",
        was="`patience=2**64` meant 0.",
        now="Numbers of evaluations are at most what the machine counts.",
        shown="solvers/test_options.py::test_numbers_of_evaluations_are_bounded_by_what_a_machine_counts",
    ),
    Stranger(
        group="input",
        was="`Anderson(memory=10**6)` asked for 80 TB for six unknowns, Broyden for 1.9 GiB for a state of 1.1 MiB.",
        now="A history is no longer than a solve can use.",
        shown="solvers/test_fitted.py::test_a_memory_beyond_all_bounds_takes_no_more_than_is_useful",
    ),
    Stranger(
        group="input",
        was="The compiled step ignored the negative bit of lazy views: the sign was wrong, and the row CONVERGED.",
        now="Lazy views are resolved before they are read.",
        shown="solvers/test_compiled_step.py::test_lazy_views_are_what_they_stand_for",
    ),
    Stranger(
        group="input",
        was="So did the compiled layers, which also read beyond the end of a projection of another width.",
        now="Tensors without memory of their own go to torch, and another width is refused.",
        shown="layers/test_twins_memory.py::test_inputs_without_memory",
    ),
    Stranger(
        group="input",
        was="`memcpy(null, null, 0)`, which C++ does not define, in eleven places.",
        now="Fuzz of steps and layers runs under the sanitizers for addresses and undefined behaviour.",
        shown="solvers/test_sanitizers.py::test_no_undefined_behaviour",
    ),
    Stranger(
        group="input",
        was='`Stop(per="leaf")` with a leaf of one number per row raised IndexError on torch operations.',
        now="It is a leaf like any other.",
        shown="solvers/test_measure.py::test_a_leaf_of_one_number_per_row",
    ),
    Stranger(
        group="input",
        was="A batch of no rows raised with a `token_mask`.",
        now="It has no rows and no error, whatever the `Stop`.",
        shown="solvers/test_measure.py::test_no_rows_at_all",
    ),
    Stranger(
        group="input",
        was="It raised in every call of a model without grad.",
        now="Logits have no rows.",
        shown="models/test_inputs.py::test_a_batch_without_rows_has_logits_without_rows",
    ),
    Stranger(
        group="input",
        was='`Stop(max_iter=sys.maxsize, test_every="auto")` never ended on torch steps.',
        now="It ends.",
        shown="solvers/test_statuses.py::test_the_largest_number_of_evaluations_ends_all_the_same",
    ),
    Stranger(
        group="input",
        was="A compiler whose messages are no UTF-8, or whose library lacks our symbols, broke the default solve.",
        now="Torch operations do the work, and `deqlm env` gives the reason.",
        shown="solvers/test_build.py::test_a_compiler_that_does_not_compile",
    ),
    Stranger(
        group="input",
        was="A compiler that hangs was waited for, 20 minutes without a word and longer.",
        now="It has 5 s to answer and 25 s to compile, then it is killed with its children.",
        shown="solvers/test_build.py::test_a_compiler_that_hangs_is_killed_with_its_children",
    ),
    Stranger(
        group="input",
        was="A library of another user, in a `DEQLM_CACHE` that all may write to, was loaded.",
        now="Owner and mode of file, digest and folders decide.",
        shown="solvers/test_build.py::test_what_belongs_to_others_is_not_loaded",
    ),
    Stranger(
        group="input",
        was="Without a cache every process left a folder of temporary files behind.",
        now="Nothing is left.",
        shown="solvers/test_build.py::test_without_a_cache_nothing_is_left_behind",
    ),
    Stranger(
        group="input",
        was="`~` in `DEQLM_CACHE` was a folder of that name.",
        now="It is the user's home.",
        shown="solvers/test_build.py::test_where_the_cache_is",
    ),
    Stranger(
        group="input",
        was="Sparse, nested, masked, meta and float8 states failed inside torch, without a name.",
        now="They are refused by the name of the argument.",
        shown="deq/test_kinds.py::test_a_start_of_another_kind_is_refused",
    ),
    Stranger(
        group="input",
        was="A `token_mask` that is no tensor raised AttributeError.",
        now="It is refused by name.",
        shown="deq/test_kinds.py::test_masks_that_are_none",
    ),
    Stranger(
        group="input",
        was="A sparse adjacency as argument raised where rows leave or a row is NaN.",
        now="A tensor that can be cut is per row, any other is shared.",
        shown="deq/test_kinds.py::test_a_sparse_adjacency_whose_nodes_are_rows",
    ),
    Stranger(
        group="input",
        was="Ids of int8 failed inside torch.",
        now="Every integer dtype is taken; the rest is refused by argument, value and rule.",
        shown="models/test_inputs.py::test_errors_name_argument_value_and_rule",
    ),
    Stranger(
        group="input",
        was='A sealed checkpoint of nonsense (`step="five"`) was accepted.',
        now="It is a `CheckpointError`.",
        shown="training/test_checkpoint.py::test_sealed_nonsense_is_refused",
    ),
    Stranger(
        group="input",
        was="A view of two numbers was saved with its whole storage, 8 MB.",
        now="A part is saved alone.",
        shown="training/test_checkpoint.py::test_a_part_of_a_tensor_is_saved_alone",
    ),
    Stranger(
        group="input",
        was="A malformed record in the folder of `deqlm compare` was a traceback, after the work.",
        now="It is looked at before the work, and replaced.",
        shown="cli/test_cli.py::test_a_malformed_record_of_a_former_run_is_replaced",
    ),
    Stranger(
        group="input",
        was='The index of a folder of weights led to other folders by "../".',
        now="Such an index is refused.",
        shown="hf/test_weight_files.py::test_an_index_does_not_lead_to_other_folders",
    ),
    Stranger(
        group="input",
        was="A tensor that an index promised and no file held was taken for a new one, and initialised.",
        now="The folder is refused.",
        shown="hf/test_weight_files.py::test_a_tensor_that_is_promised_and_not_there",
    ),
    Stranger(
        group="input",
        was="Weights of int8 and float8 were taken for numbers, without their scales.",
        now="They are refused.",
        shown="hf/test_weight_files.py::test_quantised_weights_are_refused",
    ),
    Stranger(
        group="input",
        was="BatchNorm lost updates where threads shared a layer.",
        now="In `train()` threads take turns.",
        shown="deq/test_buffers.py::test_threads_lose_no_update",
    ),
    Stranger(
        group="input",
        was="FSDP2 by block waited for ever where processes needed unequal numbers of evaluations.",
        now="A layer that is sharded below its DEQ is refused unless its solves are budgets.",
        shown="deq/test_collective.py::test_a_tolerance_is_refused",
    ),
)
