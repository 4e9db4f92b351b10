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


def test_no_more_graphs_than_the_unwrapped_model():
    counts = []
    for wrap in (False, True):
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("eager")
        compiled = torch.compile(residual(), backend=counter, fullgraph=True)
        if wrap:
            with sa.StreamProcessor(compiled) as processor:
                calls(processor)
                assert processor.event_counts["StepCompleted"] == 3 * len(BATCHES)
                assert "LayersUnobserved" not in processor.event_counts
        else:
            calls(compiled)
        counts.append(counter.frame_count)
    assert counts[1] <= counts[0]


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
    model = residual()
    with sa.StreamProcessor(model, max_streams=2) as processor, torch.no_grad():
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
