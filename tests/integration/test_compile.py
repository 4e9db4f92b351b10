"""Under torch.compile: one graph, no stale graph, no more compilations than without us."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor import config as inductor_config

import streamadapt as sa
from tests.models import frames, residual, same, state_of

BATCHES = (4, 4, 6, 9, 4, 6)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def calls(run):
    """The same shapes and grad modes for every candidate."""
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode():
            for batch in BATCHES:
                run(frames(batch, shift=1.0))


def graphs(estimator, run):
    """How many graphs `run` makes of a wrapped model, or without an estimator of a plain one."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(residual(), backend=counter, fullgraph=True)
    if estimator is None:
        run(compiled)
    else:
        with sa.StreamProcessor(compiled, estimator=estimator) as processor:
            run(processor)
            assert processor.event_counts["StepCompleted"] == 3 * len(BATCHES)
            assert not {"LayersUnobserved", "SettlingFailed"} & processor.event_counts.keys()
    return counter.frame_count


def test_no_more_graphs_than_the_unwrapped_model():
    assert graphs(sa.estimators.EMA(), calls) <= graphs(None, calls)


def test_settling_passes_have_one_graph_for_each_of_the_models_at_most():
    always = sa.estimators.Restarting(settling_seconds=1e9)
    assert graphs(always, calls) <= 2 * graphs(None, calls)


@pytest.mark.parametrize("timing", ["lagged", "synchronous"])
@pytest.mark.parametrize("corrects", [True, False])
def test_one_more_graph_for_the_first_settling_pass_at_most(timing, corrects):
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(residual(), backend=counter, fullgraph=True)
    estimator = sa.estimators.Restarting(own_depth=1 / 3 if corrects else 0.0)
    with (
        torch.no_grad(),
        sa.StreamProcessor(
            compiled, estimator=estimator, timing=timing, class_scores=False
        ) as processor,
        sa.StreamProcessor(
            residual(), estimator=estimator, timing=timing, class_scores=False
        ) as reference,
    ):
        counts, passes = [], []
        for step in range(40):
            x, now = frames(8, seed=step, shift=1.0 if step < 20 else 30.0), {"pts_seconds": step}
            torch.testing.assert_close(
                processor(x, **now), reference(x, **now), rtol=1e-4, atol=1e-4
            )
            counts.append(counter.frame_count)
            passes.append(processor.event_counts.get("SettlingPassed", 0))
    # In synchronous timing, and where frames are corrected, inputs are moved anyway, and there is
    # one graph for both.
    assert set(counts) == {2 if timing == "lagged" and not corrects else 1}
    assert passes[0] == 1 and passes[18] == passes[19] < passes[-2] == passes[-1]


@pytest.mark.parametrize("options", [{}, {"max_streams": 3}, {"timing": "synchronous"}])
def test_one_recompile_at_install_and_none_later(options):
    model = residual()
    source = state_of(model)
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    x = frames(4, shift=2.0)
    with torch.no_grad():
        expected = compiled(x)
        assert counter.frame_count == 1
        with sa.StreamProcessor(compiled, estimator=sa.estimators.EMA(0.5), **options) as processor:
            reference = sa.StreamProcessor(residual(), estimator=sa.estimators.EMA(0.5), **options)
            for seed in range(4):
                batch = frames(4, seed=seed, shift=2.0)
                torch.testing.assert_close(processor(batch), reference(batch), rtol=1e-4, atol=1e-5)
            assert counter.frame_count == 2
            assert processor.drift().overall == pytest.approx(reference.drift().overall, rel=1e-4)
        assert torch.equal(compiled(x), expected)
        assert counter.frame_count <= 3
    assert same(state_of(model), source)


def test_inductor_reads_live_statistics():
    compiled = torch.compile(residual(), fullgraph=True)
    with (
        torch.no_grad(),
        sa.StreamProcessor(compiled, estimator=sa.estimators.EMA(0.5)) as processor,
    ):
        for seed in range(3):
            x = frames(4, seed=seed, shift=2.0)
            plain = processor.adapted_model()
            torch.testing.assert_close(processor(x), plain(x), rtol=1e-4, atol=1e-4)
        assert processor.event_counts["StepCompleted"] == 3
        assert processor.drift().overall > 0.1


def test_compiling_after_wrapping_and_in_place():
    model, estimator = residual(), sa.estimators.EMA()
    with (
        sa.StreamProcessor(model, estimator=estimator, max_streams=2) as processor,
        torch.no_grad(),
    ):
        model.compile(backend="eager", fullgraph=True)
        processor(frames(3, shift=1.0), streams=["a", "b", "b"])
        assert processor.drift("b").overall > 0.0


def test_gradients_through_a_compiled_step():
    compiled = torch.compile(residual(), backend="aot_eager", fullgraph=True)
    with sa.StreamProcessor(compiled) as processor:
        processor(frames(4))
        x = frames(4).requires_grad_()
        output = processor(x)
        processor(frames(4, seed=1))
        output.square().sum().backward()
        assert torch.isfinite(x.grad).all() and x.grad.abs().sum() > 0


@pytest.mark.parametrize("everywhere", [False, True])
def test_frozen_graphs_are_refused(everywhere):
    options = {} if everywhere else {"options": {"freezing": True}}
    with inductor_config.patch(freezing=everywhere):
        compiled = torch.compile(residual(), **options)
        with pytest.raises(sa.errors.UnsupportedModelError, match="bakes the statistics in"):
            sa.StreamProcessor(compiled)


def test_names_do_not_carry_the_compilers_prefix():
    with sa.StreamProcessor(torch.compile(residual(), backend="eager")) as processor:
        assert list(processor.statistics()) == ["bn1", "bn2", "bn3"]
