"""Scenario files: what is accepted, and the one line that a wrong one gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamadapt.errors import ConfigurationError, ScenarioError
from streamadapt.replay.scenario import DEFAULT_POLICIES, Domain, PolicySpec, Scenario

FULL = """
name = "night shift"
seed = 7
batch_size = 4
order = "dirichlet"
dirichlet_alpha = 0.3
model = "shop.models:classifier"
data = "frames.npz"
resize = [32, 48]
normalize = { mean = [0.5, 0.4, 0.3], std = [1, 0.2, 0.2] }

[[domain]]
name = "day"
samples = 20

[[domain]]
name = "night"
corruption = "low_light"
severity = 4
samples = 30

[[policy]]
name = "frozen"
kind = "frozen"

[[policy]]
name = "slow"
kind = "estimator"
estimator = "EMA"
timing = "lagged"
parameters = { momentum = 0.02 }
"""
SMALL = 'name = "s"\n[[domain]]\nname = "day"\nsamples = 20\n'


def read(tmp_path: Path, text: str) -> Scenario:
    path = tmp_path / "s.toml"
    path.write_text(text)
    return Scenario.from_toml(path)


def complaint(tmp_path: Path, text: str) -> str:
    with pytest.raises(ScenarioError) as caught:
        read(tmp_path, text)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 's.toml'}: ")
    assert "\n" not in message
    return message.removeprefix(f"{tmp_path / 's.toml'}: ")


def test_a_full_file_becomes_a_value(tmp_path: Path) -> None:
    scenario = read(tmp_path, FULL)
    assert scenario == Scenario(
        name="night shift",
        seed=7,
        batch_size=4,
        order="dirichlet",
        dirichlet_alpha=0.3,
        model="shop.models:classifier",
        data="frames.npz",
        resize=(32, 48),
        mean=(0.5, 0.4, 0.3),
        std=(1.0, 0.2, 0.2),
        domains=(Domain("day", 20), Domain("night", 30, "low_light", 4)),
        policies=(
            PolicySpec("frozen", "frozen"),
            PolicySpec("slow", "estimator", "EMA", "lagged", {"momentum": 0.02}),
        ),
    )
    assert scenario.data_source == tmp_path / "frames.npz"


def test_a_small_file_gets_the_defaults(tmp_path: Path) -> None:
    scenario = read(tmp_path, SMALL)
    assert scenario.policies == DEFAULT_POLICIES
    assert scenario.domains == (Domain("day", 20, "none", 3),)
    assert scenario.model is None
    assert scenario.data_source is None
    assert read(tmp_path, "resize = 24\n" + SMALL).resize == (24, 24)
    assert read(tmp_path, 'data = "builtin:digits"\n' + SMALL).data_source == "builtin:digits"


def test_an_unknown_key_is_named_with_the_known_ones(tmp_path: Path) -> None:
    assert complaint(tmp_path, "batchsize = 3\n" + SMALL) == (
        "unknown key `batchsize`. Did you mean `batch_size`? Known: name, model, data, seed, "
        "batch_size, order, dirichlet_alpha, class_groups, arrangement, visits, episodic, "
        "transition_frames, label_shift, split, part, time, resize, frames_per_second, normalize, "
        "domain, policy."
    )
    assert complaint(tmp_path, SMALL + "strength = 3\n") == (
        "domain 1 `day`: unknown key `strength`. Known: name, corruption, severity, samples, "
        "images, labels."
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name = "s"\n', "`domain` is missing."),
        (SMALL.replace('name = "s"\n', ""), "`name` is missing."),
        (SMALL.replace("samples = 20", ""), "domain 1 `day`: `samples` is missing."),
        (
            SMALL.replace("= 20", '= "20"'),
            "domain 1 `day`: `samples` must be a whole number, got '20'.",
        ),
        (
            SMALL.replace("= 20", "= true"),
            "domain 1 `day`: `samples` must be a whole number, got True.",
        ),
        (SMALL.replace("= 20", "= 0"), "domain `day`: `samples` must be at least 1, got 0."),
        (SMALL + "severity = 6\n", "domain `day`: `severity` must be 1 to 5, got 6."),
        (
            SMALL + "severity = 2.5\n",
            "domain 1 `day`: `severity` must be a whole number or a list, got 2.5.",
        ),
        (SMALL + "severity = [1, 7]\n", "domain `day`: `severity` must be 1 to 5, got [1, 7]."),
        (
            SMALL + 'labels = "l.csv"\n',
            "domain `day`: `labels` belong to `images`, which are missing.",
        ),
        (
            SMALL + 'images = "x.npy"\ncorruption = "fog"\n',
            "domain `day`: `images` are shown as they are. Leave `corruption` out, or spoil the "
            "scenario's `data` instead.",
        ),
        ('name = "s"\n[[domain]]\nname = "day"\n', "domain 1 `day`: `samples` is missing."),
        ("visits = 0\n" + SMALL, "`visits` must be at least 1, got 0."),
        ("label_shift = 0.5\n" + SMALL, "`label_shift` must be 1 or above, got 0.5."),
        ("transition_frames = -1\n" + SMALL, "`transition_frames` must not be negative, got -1."),
        ("episodic = 1\n" + SMALL, "`episodic` must be true or false, got 1."),
        (
            'arrangement = "mixed"\nvisits = 2\n' + SMALL,
            "`visits` needs domains that come one after the other. Leave it out, or set "
            'arrangement = "sequential".',
        ),
        (
            "[time]\nrelative_rate = 0\n" + SMALL.replace('name = "s"\n', "", 1),
            "`name` is missing.",
        ),
        ('name = "s"\ndomain = [3]\n', "`domain` must be a list of tables, written [[domain]]."),
        ('name = "s"\ndomain = []\n', "There is no domain. Add at least one [[domain]]."),
        ("seed = -1\n" + SMALL, "`seed` must not be negative, got -1."),
        ("batch_size = 0\n" + SMALL, "`batch_size` must be at least 1, got 0."),
        (
            'order = "sorted"\n' + SMALL,
            "Unknown order `sorted`. Known: iid, dirichlet.",
        ),
        (
            "dirichlet_alpha = 0\n" + SMALL,
            "`dirichlet_alpha` must be above 0 and finite, got 0.",
        ),
        (
            "dirichlet_alpha = nan\n" + SMALL,
            "`dirichlet_alpha` must be above 0 and finite, got nan.",
        ),
        (
            "frames_per_second = 0\n" + SMALL,
            "`frames_per_second` must be above 0 and finite, got 0.",
        ),
        ("resize = [8]\n" + SMALL, "`resize` must be 2 whole numbers, got [8]."),
        ("resize = 0\n" + SMALL, "`resize` must be at least 1 pixel, got [0, 0]."),
        ("normalize = { mean = [0, 0, 0] }\n" + SMALL, "normalize: `std` is missing."),
        (
            "normalize = { mean = [0, 0], std = [1, 1, 1] }\n" + SMALL,
            "`normalize.mean` must be 3 numbers, got [0, 0].",
        ),
        (
            "normalize = { mean = [0, 0, 0], std = [1, 0, 1] }\n" + SMALL,
            "`std` must be above 0 and finite, got [1.0, 0.0, 1.0].",
        ),
        (
            SMALL + '[[policy]]\nname = "a"\nkind = "magic"\n',
            "policy `a`: unknown kind `magic`. Known: frozen, adabn, estimator, class_balanced, "
            "eata, lame, rdumb, rotta, sar, tent, unmix_tns.",
        ),
        (
            SMALL + '[[policy]]\nname = "a"\nkind = "frozen"\ntiming = "lagged"\n',
            "policy `a`: `estimator` and `timing` have no meaning with kind `frozen`. "
            'Use kind = "estimator".',
        ),
        (
            SMALL + '[[policy]]\nname = "a"\nkind = "estimator"\ntiming = "now"\n',
            "policy `a`: unknown timing `now`. Known: lagged, synchronous.",
        ),
        (
            SMALL + '[[policy]]\nname = "a"\nkind = "estimator"\nparameters = { x = 1 }\n',
            "policy `a`: `parameters` need an `estimator` that they belong to.",
        ),
        (
            SMALL + 2 * '[[policy]]\nname = "a"\nkind = "frozen"\n',
            "Two policies are called `a`. Give each its own name.",
        ),
    ],
)
def test_a_wrong_file_gets_one_line(tmp_path: Path, text: str, message: str) -> None:
    assert complaint(tmp_path, text) == message


def test_an_unknown_corruption_is_named(tmp_path: Path) -> None:
    message = complaint(tmp_path, SMALL + 'corruption = "gausian_noise"\n')
    assert message.startswith(
        "domain `day`: unknown corruption `gausian_noise`. Did you mean `gaussian_noise`? Known: "
    )


def test_files_that_are_not_scenarios(tmp_path: Path) -> None:
    assert complaint(tmp_path, "name = \n").startswith("not valid TOML: ")
    with pytest.raises(ScenarioError, match=r"absent\.toml: cannot be read \(No such file"):
        Scenario.from_toml(tmp_path / "absent.toml")
    assert issubclass(ScenarioError, ConfigurationError)
    assert ScenarioError.exit_code == 2


def test_replace_checks_again_and_keeps_what_is_not_given(tmp_path: Path) -> None:
    scenario = read(tmp_path, FULL)
    other = scenario.replace(seed=9, model=None)
    assert (other.seed, other.model) == (9, scenario.model)
    with pytest.raises(ScenarioError, match="`batch_size` must be at least 1"):
        scenario.replace(batch_size=0)
    with pytest.raises(ScenarioError, match="no `speed` to override"):
        scenario.replace(speed=1)


def test_the_hash_follows_the_content_not_the_place(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    here, there = read(tmp_path, FULL), read(tmp_path / "a", FULL)
    assert here.configuration_hash == there.configuration_hash
    assert len(here.configuration_hash) == 12
    int(here.configuration_hash, 16)
    for change in ({"seed": 8}, {"batch_size": 5}, {"policies": here.policies[:1]}):
        assert here.replace(**change).configuration_hash != here.configuration_hash


@pytest.mark.parametrize("name", ["continual", "correlated"])
def test_the_examples_are_valid(name: str) -> None:
    examples = Path(__file__).parents[3] / "examples"
    scenario = Scenario.from_toml(examples / f"{name}.toml")
    assert len(scenario.domains) == 12
    assert scenario.order == {"continual": "iid", "correlated": "dirichlet"}[name]
