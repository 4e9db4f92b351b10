"""What was replayed: the scenario, seeds, model, data and versions behind the numbers."""

from __future__ import annotations

from streamadapt.replay.report.markup import counted, listed, tag
from streamadapt.replay.report.pool import Pool


def extent(one: Pool) -> str:
    """How much was replayed, in a sentence."""
    frames = sum(sum(result.batch_frames) for result in one.results)
    text = f"{counted(frames, 'frame')} in {counted(len(one.domains), 'domain')}"
    if one.visits > 1:
        text += f", visited up to {one.visits} times"
    policies = counted(len(one.names), "policy", "policies")
    return f"{text}, {counted(len(one.results), 'seed')}, {policies}."


def facts(one: Pool) -> dict[str, object]:
    """What was run, and with what."""
    first = one.first
    scenario, data = first.scenario, first.data
    order = str(scenario.get("order", ""))
    if order == "dirichlet":
        order += f", alpha {scenario.get('dirichlet_alpha')}"
    runs = [domain.mean_run_length for domain in first.domains]
    several = len(one.results) > 1
    out: dict[str, object] = {
        "scenario": first.name,
        "configuration": listed(
            [
                result.configuration_hash
                + (f" (seed {result.scenario.get('seed')})" if several else "")
                for result in one.results
            ]
        ),
        "seeds" if several else "seed": listed([str(seed) for seed in one.seeds]),
        "batch size": scenario.get("batch_size"),
        "order": f"{order} (runs of one class: {sum(runs) / len(runs):.1f} frames on average)",
        "model": f"{scenario.get('model') or first.model.get('class')} "
        f"(weights {str(first.model.get('sha256', ''))[:12]})",
        "data": f"{scenario.get('data') or 'given by the caller'}, {data.get('samples')} images of "
        f"{data.get('height')} × {data.get('width')} (sha256 {str(data.get('sha256', ''))[:12]})",
        "versions": ", ".join(f"{name} {value}" for name, value in first.versions.items()),
        "wall time": tag(
            "span", f"{sum(result.wall_seconds for result in one.results):.1f} s", class_="measured"
        ),
    }
    return out | {f"policy {rank.name}": rank.description for rank in one.ranks}
