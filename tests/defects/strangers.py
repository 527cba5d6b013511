"""Faults of our own version 0.1 that strangers' layers, bug reports, clients and attacks found."""

from __future__ import annotations

from defects.hostile import INPUT
from defects.stranger import Stranger

__all__ = ["STRANGERS"]

WORDS = (
    Stranger(
        group="words",
        was="Layers z + F(z) (GPT-2 block, ViT layer, `norm_first=True`, `z + mlp(z)`) ended CONVERGED: the state "
        "had grown 1e4 to 2e5 times, the residual was .998 to 1.06 of the first one.",
        now="Such a row never ends CONVERGED; one that passes only because its state grew ends DIVERGED.",
        shown="deq/test_pre_norm.py::test_no_row_of_a_pre_norm_block_is_called_converged",
    ),
    Stranger(
        group="words",
        was="`diagnose` blamed the backward solve of such a layer and advised phantom steps.",
        now="The cause is RUNAWAY; a norm after the sum is tried, and the line to paste is printed and works.",
        shown="diagnostics/test_runaway.py::test_the_line_to_paste_works",
    ),
    Stranger(
        group="words",
        was="A mean over rows times 3e-5 to 1e-4 passed the probe, rows left, and four settings had rows that were "
        "called CONVERGED above their tolerance.",
        now="After rows have left, one evaluation of all of them decides; a row that no longer passes is taken up "
        "again.",
        shown="solvers/test_mixed_rows.py::test_rows_that_mix_less_than_a_probe_sees",
    ),
    Stranger(
        group="words",
        was="`deqlm compare` of a function that returns a DEQ compared solvers on z = DEQ(z).",
        now="`(DEQ, x)` means the equation z = layer(z + x), as in `diagnose`.",
        shown="compare/test_user_map.py::test_a_deq_is_compared_on_its_own_equation",
    ),
    Stranger(
        group="words",
        was="`torch.jit.trace` of a DEQ or a model returned memory that nobody had written, with errors up to 1e34.",
        now="A recording is refused: its number of steps would be that of the example.",
        shown="deq/test_recorded.py::test_a_solve_is_not_recorded",
    ),
    Stranger(
        group="words",
        was="`generate` did not say that its solves had failed, neither by a warning nor in its output.",
        now="One warning per call, with counts, and `status` beside `steps`.",
        shown="hf/test_generate_failures.py::test_one_warning_tells_how_many_solves_did_not_converge",
    ),
    Stranger(
        group="words",
        was="Cached and uncached text of a map with two fixed points differed, and nothing named the reason.",
        now="`diagnose(model, ids)` says PATH_DEPENDENT; the guide to generation tells what to do.",
        shown="diagnostics/test_models.py::test_a_model_with_two_solutions_is_named",
    ),
    Stranger(
        group="words",
        was="Float64 maps beyond 1e150 or below 1e-150 ended CONVERGED at 0 with residual 0, or NONFINITE where f "
        "is finite.",
        now="Norms are scaled, and right at every magnitude.",
        shown="solvers/test_measure.py::test_norms_are_right_at_every_magnitude_of_float64",
    ),
    Stranger(
        group="words",
        was='With `test_every="auto"`, STALLED or MAX_ITER depended on the neighbours in 5 of 900 rows.',
        now="The reading half way is each row's own.",
        shown="solvers/test_statuses.py::test_where_a_row_stood_half_way_is_its_own_matter",
    ),
    Stranger(
        group="words",
        was="Newton's failures were told to damp the step and to take Anderson.",
        now="Every solver gives advice of its own.",
        shown="solvers/test_trial_points.py::test_advice_fits_methods_that_need_no_damping",
    ),
    Stranger(
        group="words",
        was='Mixed rows, a batch that comes second and random f were told to "raise max_iter".',
        now="A few uncounted evaluations find the mistake, and the message names it.",
        shown="deq/test_likely_mistakes.py::test_likely_mistakes_are_named_in_place_of_hints",
    ),
    Stranger(
        group="words",
        was="A configuration with Newton was accepted, and its first call without grad raised NoDerivativeError.",
        now="Solvers that differentiate f work without grad and in inference mode.",
        shown="hf/test_model.py::test_solvers_that_differentiate_work_without_grad",
    ),
    Stranger(
        group="words",
        was='A page said that a solver costs "-745 us per solve".',
        now="A difference below what can be measured is not printed as a cost.",
        shown="benchmarks/test_comparison.py::test_a_cost_below_zero_is_not_printed",
    ),
)

GRADIENTS = (
    Stranger(
        group="gradients",
        was="With a `token_mask` and real tokens that attend to masked ones, directional derivatives were off by up "
        "to 148 %.",
        now="Value and gradient are those of one map, in which masked tokens are held where they start.",
        shown="gradients/test_masked.py::test_the_implicit_gradient_is_that_of_the_masked_map",
    ),
    Stranger(
        group="gradients",
        was="There the value of `Phantom` with grad differed by 11 % from that without, all CONVERGED.",
        now="Values with grad are those of the masked map too.",
        shown="gradients/test_masked.py::test_the_value_is_that_without_grad",
    ),
    Stranger(
        group="gradients",
        was="NaN that f makes at a masked token reached the products with J^T.",
        now="It reaches no gradient.",
        shown="gradients/test_masked.py::test_what_f_makes_of_a_masked_token_reaches_no_gradient",
    ),
    Stranger(
        group="gradients",
        was="One norm over a graph whose nodes differ by ten orders: the gradient of small nodes was wrong 1e3 to "
        "1e9 times.",
        now='`Stop(per="token")` and `per="leaf"` hold in the backward solve too.',
        shown="gradients/test_backward_choice.py"
        "::test_small_nodes_of_a_graph_have_a_right_gradient_with_a_tolerance_per_token",
    ),
    Stranger(
        group="gradients",
        was="Nothing told that parts of a row lie below its tolerance.",
        now="The cause UNLIKE_PARTS names them, forward and backward.",
        shown="diagnostics/test_parts.py::test_nodes_of_many_orders_of_size_are_named",
    ),
    Stranger(
        group="gradients",
        was="`parametrize.cached()` around a DEQ lost the gradient of every parametrised weight.",
        now="The gradient is there.",
        shown="gradients/test_overflow.py::test_weights_cached_while_a_solve_runs_keep_their_gradient",
    ),
    Stranger(
        group="gradients",
        was="So did it around a language model.",
        now="The gradient is there.",
        shown="models/test_cached_weights.py::test_weights_that_torch_caches_keep_their_gradient",
    ),
    Stranger(
        group="gradients",
        was="A scaled loss that overflowed on its way back: the rows were dropped, and the scale of `GradScaler` grew.",
        now="An overflow stays visible, the step is skipped and the scale falls.",
        shown="gradients/test_overflow.py::test_a_scaler_skips_the_step_whose_loss_overflows_on_its_way_back",
    ),
    Stranger(
        group="gradients",
        was="`torch.autograd.functional.jvp` gave zeros (right: norm 2.09), and `hvp` with `second_order=True` was "
        "wrong by 1.17.",
        now="Every operation there is right or refused.",
        shown="gradients/test_functional.py::test_every_operation_is_right_or_refused",
    ),
    Stranger(
        group="gradients",
        was="A learned `grad_outputs` got no gradient.",
        now="It gets it.",
        shown="gradients/test_functional.py::test_a_learned_cotangent_gets_its_gradient",
    ),
    Stranger(
        group="gradients",
        was="`torch.compile(model)` around a DEQ: the DEQ and all below it got no gradient.",
        now="The solve runs eagerly inside, with values and gradients of the plain model.",
        shown="deq/test_compile.py::test_a_compiled_model_trains_like_a_plain_one",
    ),
    Stranger(
        group="gradients",
        was="A loss that f leaves on the layer had a part of its gradient (error .63 with `Implicit` and `OneStep`).",
        now="`Implicit` gives the whole of it.",
        shown="gradients/test_left_behind.py::test_an_auxiliary_loss_has_its_whole_gradient",
    ),
    Stranger(
        group="gradients",
        was="Buffers that a layer moves through `.data` moved 9 to 15 times per call.",
        now="Once, however they are moved.",
        shown="deq/test_buffers.py::test_a_buffer_moves_once_per_call",
    ),
    Stranger(
        group="gradients",
        was="The backward of a Newton solve was Anderson's: right on 78 of 100 problems, and wrong already for four "
        "unknowns with eigenvalues 1 to 1000.",
        now="`Newton` is followed by LU, `NewtonKrylov` by GMRES.",
        shown="gradients/test_backward_choice.py::test_the_backward_of_newton_is_as_strong_as_newton",
    ),
    Stranger(
        group="gradients",
        was="A row whose backward solve failed lost its gradient at once.",
        now="GMRES stands in first, and `Solution.adjoint.picked` says so.",
        shown="gradients/test_backward_choice.py"
        "::test_an_adjoint_that_anderson_cannot_solve_is_solved_by_gmres_and_says_so",
    ),
    Stranger(
        group="gradients",
        was="By default the loss of a model depended on gradient accumulation: weights differed by 2.6e-3 and "
        "4.9e-4 after three steps.",
        now="Rows end by themselves in training too, and the difference is rounding.",
        shown="models/test_failing.py::test_a_loss_does_not_depend_on_how_a_batch_is_cut",
    ),
    Stranger(
        group="gradients",
        was="A budget with gradient steps was another function with grad than without, and nothing could make it one.",
        now="`same_value=True` of `Phantom` and `OneStep` does.",
        shown="gradients/test_same_value.py::test_a_solve_and_its_steps_make_one_function",
    ),
    Stranger(
        group="gradients",
        was="A layer in bfloat16 was held to 1e-4, far below its rounding: 3 of 8 rows of a contraction ended "
        "MAX_ITER.",
        now='`Stop(rtol="auto")`, the default, asks for no more than 4 eps of the dtype that f computes in.',
        shown="gradients/test_backward_choice.py::test_the_default_tolerance_is_what_the_dtype_resolves",
    ),
)

ROWS = (
    Stranger(
        group="rows",
        was="The probe that lets rows leave was taken out of `max_iter`: an answer depended on neighbours in 544 of "
        "15,322 random comparisons, and `max_iter=5` made six evaluations.",
        now="Probe and last look count as cost, never as a step.",
        shown="solvers/test_compact.py::test_neither_probe_nor_last_look_is_a_step",
    ),
    Stranger(
        group="rows",
        was="`newton_krylov` with `test_every` above 1 often did not test its last evaluation.",
        now="It is tested.",
        shown="solvers/test_newton_krylov.py::test_the_last_evaluation_is_tested",
    ),
    Stranger(
        group="rows",
        was="One NaN row made `newton_krylov` call f for every product and changed the status of others.",
        now="It costs no calls.",
        shown="solvers/test_newton_krylov.py::test_a_row_that_is_not_finite_costs_no_calls_of_f",
    ),
    Stranger(
        group="rows",
        was="`torch.hypot` rounds by the place in the batch: 8 of 1,980 rows differed alone and together.",
        now="Our own does not.",
        shown="solvers/test_gmres.py::test_a_hypotenuse_does_not_depend_on_its_place",
    ),
    Stranger(
        group="rows",
        was="Newton's methods ended rows at points that their search would have refused: 556 of 1,000 rows of "
        "exp(z) = b.",
        now="A trial point ends no row: all are solved.",
        shown="solvers/test_trial_points.py::test_steps_into_overflow_are_shortened",
    ),
    Stranger(
        group="rows",
        was="So did they where a step leaves the domain of f: 81 of 100 rows of log(z) = 0.",
        now="A trial that is not finite is a failed step: all are solved.",
        shown="solvers/test_trial_points.py::test_steps_out_of_the_domain_are_shortened",
    ),
    Stranger(
        group="rows",
        was="A wild first step ended rows of Anderson and Broyden: 556 of 1,000 rows of exp(z) = b.",
        now="A refused step is shortened: Anderson solves all, Broyden at least 995.",
        shown="solvers/test_wild_points.py::test_steps_into_overflow_are_shortened",
    ),
    Stranger(
        group="rows",
        was="After a failed search a Newton took plain steps that exploded.",
        now="A plain step never grows the residual tenfold.",
        shown="solvers/test_trial_points.py::test_a_plain_step_never_grows_the_residual_tenfold",
    ),
    Stranger(
        group="rows",
        was="The generalised Rosenbrock system of ten unknowns was solved by no solver of ours.",
        now="`Dogleg`, Powell's trust region, solves it.",
        shown="solvers/test_dogleg.py::test_a_curved_valley_that_line_searches_miss",
    ),
    Stranger(
        group="rows",
        was="An f that raises for fewer rows (`assert z.shape[0] == 32`) raised inside the probe, with all defaults.",
        now='A probe that raises means "rows stay".',
        shown="solvers/test_compact.py::test_a_map_that_raises_for_fewer_rows_keeps_them",
    ),
    Stranger(
        group="rows",
        was="So did a layer that raises in the probe of causality.",
        now="It is solved all the same.",
        shown="deq/test_causal.py::test_a_layer_that_refuses_the_probe_is_solved_all_the_same",
    ),
    Stranger(
        group="rows",
        was="A function that closes over a module was wrapped without a word, its parameters in no optimiser.",
        now="One warning names the module.",
        shown="deq/test_hidden.py::test_a_function_that_uses_a_module_gets_one_warning",
    ),
    Stranger(
        group="rows",
        was="Helper tensors were made on torch's default device and of its default dtype.",
        now="The source is read for calls that lack either.",
        shown="test_factories.py::test_no_tensor_is_made_on_a_default",
    ),
    Stranger(
        group="rows",
        was="Newton's methods raised on an f that refuses grad mode, as that of a model in a call without grad.",
        now="Forward mode needs none, and is taken.",
        shown="solvers/test_newton_krylov.py::test_a_map_opened_without_grad",
    ),
    Stranger(
        group="rows",
        was="A state in channels last came back in another memory format.",
        now="It comes back as it went in.",
        shown="deq/test_combinations.py::test_channels_last_comes_back_as_channels_last",
    ),
)

DEFAULTS = (
    Stranger(
        group="defaults",
        was="`Fallback`'s default solved 108 of 139 foreign problems, where the solvers of its family solve 133 "
        "together.",
        now="Its chain goes on to newton_krylov, newton and dogleg.",
        shown="solvers/test_fallback_members.py::test_the_default_chain_solves_the_classics",
    ),
    Stranger(
        group="defaults",
        was="A `Fallback` with a member that needs derivatives raised where f has none.",
        now="That member is left out, and `Solution.choices` says why.",
        shown="solvers/test_fallback_members.py::test_members_that_cannot_differentiate_f_are_left_out",
    ),
    Stranger(
        group="defaults",
        was="Anderson depended on the scale of F: of a cubic F, z - 100 F(z) was not solved in 300 evaluations, and "
        "z - 1e4 F(z) ended DIVERGED after 2.",
        now="The first pair gives the scale: 23 and 20 evaluations.",
        shown="solvers/test_anderson.py::test_the_first_pair_gives_the_scale_of_the_map",
    ),
    Stranger(
        group="defaults",
        was="On tanh(2 z) from .1 Anderson ran to the root 0, which repels, and returned a point with relative "
        "residual .18 after 100 evaluations.",
        now="A row notices and takes plain steps away: .9574 in 10.",
        shown="solvers/test_repelling_roots.py::test_it_finds_what_plain_steps_find",
    ),
    Stranger(
        group="defaults",
        was="No record held foreign problems, one of which scipy solved and no solver of ours.",
        now="136 problems of the literature are compared, and what is solved once stays solved.",
        shown="benchmarks/test_quality.py::test_no_problem_of_the_literature_is_lost",
    ),
    Stranger(
        group="defaults",
        was="A false word would have been found by nobody but the user.",
        now="No solver of ours calls a point of those problems a solution that is none.",
        shown="compare/test_literature.py::test_none_of_our_solvers_says_a_false_word_and_none_raises",
    ),
)

STRANGERS = (*WORDS, *GRADIENTS, *INPUT, *ROWS, *DEFAULTS)
