"""Is the comparison fair? One loud sentence for every reason to doubt it.

Each of these has produced a number that somebody believed: engines or recipes mixed, weights fed
with the wrong conventions, a backbone that was not loaded, one run per arm.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from transfer.compare.runs import Results, weights_sha256
from transfer.compare.statistics import (
    arm_names,
    is_per_class,
    metric_names,
    values_by_seed,
)
from transfer.compare.untrusted import clean

# Entries of "conventions" that say where weights come from, not how they want their input.
_ORIGIN = frozenset({"source_format", "source_sha256", "branch", "pretraining", "assumed"})
# The stages of a ResNet. What a detector adds (FPN, a norm after res5) never comes with weights.
_STAGE = re.compile(r"(^|\.)(stem|res[2-5])$")


def check(results: Sequence[Results]) -> list[str]:
    """Every doubt, the ones that spoil the comparison first; one sentence each."""
    return [*mismatches(results), *cautions(results)]


def mismatches(results: Sequence[Results]) -> list[str]:
    """Runs that differ in more than weights and seed: the table then does not rank the weights."""
    return [
        *_settings_differ(results),
        *_weights_differ(results),
        *_heads_were_trained(results),
        *_pretrained_on_test(results),
        *_backbones_incomplete(results),
    ]


def cautions(results: Sequence[Results]) -> list[str]:
    """What limits the conclusion without spoiling it."""
    return [
        *_conventions_differ(results),
        *_environments_differ(results),
        *_seeds(results),
        *_values(results),
        *_deviations(results),
        *_load_reports_missing(results),
        *_frozen_at_random(results),
    ]


def _settings_differ(results: Sequence[Results]) -> Iterator[str]:
    yield from _differs(results, "engine", lambda run: run["engine"])
    yield from _differs(results, "recipe hash", lambda run: run["recipe_hash"][:12])
    yield from _differs(results, "meaning of the metric", lambda run: run["metric"])
    yield from _differs(results, "precision", lambda run: run.get("precision", "not recorded"))
    for section, what in (("dataset", "data set"), ("schedule", "schedule")):
        for key in _keys(run[section] for run in results):
            yield from _differs(results, f"{what} ({key})", _entry(section, key))
    both = {
        name
        for run in results
        for name in run["dataset"].get("train", [])
        if name in run["dataset"].get("test", [])
    }
    if both:
        yield f"Test images were trained on: {_listed(sorted(both))} is in both sets."


def _weights_differ(results: Sequence[Results]) -> Iterator[str]:
    for arm in arm_names(results):
        runs = _of(results, arm)
        yield from _differs(
            runs, "weights file (sha256)", lambda run: (weights_sha256(run) or "none")[:12]
        )
        reported = [run for run in runs if run.get("load_report")]
        yield from _differs(reported, "load report", lambda run: run["load_report"], brief=True)
    owners: dict[str, list[str]] = {}
    for run in results:
        owner = owners.setdefault(weights_sha256(run) or f"random {run['arm']}", [])
        if run["arm"] not in owner:
            owner.append(run["arm"])
    for arms in owners.values():
        if len(arms) > 1:
            yield f"Arms {_listed(arms)} started from the same weights file: they are one arm."


def _heads_were_trained(results: Sequence[Results]) -> Iterator[str]:
    for run, modules in _loaded_runs(results):
        trained = [
            module["module"]
            for module in modules
            if module["loaded"] and not _STAGE.search(module["module"])
        ]
        if trained:
            yield (
                f"Arm {clean(run['arm'])} started from a trained detector: its weights file "
                f"also filled {_listed(trained)}."
            )


def _backbones_incomplete(results: Sequence[Results]) -> Iterator[str]:
    for run, modules in _loaded_runs(results):
        missing = [module["module"] for module in modules if _stage_missing(module)]
        if missing:
            yield (
                f"Arm {clean(run['arm'])} is partly random: its weights file did not fill "
                f"{_listed(missing)} completely."
            )


def _stage_missing(module: dict[str, Any]) -> bool:
    """Whether a stage of the ResNet has tensors that the weights file did not fill."""
    return bool(_STAGE.search(module["module"]) and module["initialised"])


def _conventions_differ(results: Sequence[Results]) -> Iterator[str]:
    for run in _first_of_each_arm(results):
        if run["weights"] is not None and not run["weights"].get("conventions"):
            yield (
                f"Arm {clean(run['arm'])} has weights that say nothing about their conventions "
                "(channel order, mean and std, stride placement)."
            )
    for key in _keys(_conventions(run) for run in results):
        if key not in _ORIGIN:
            yield from _differs(
                [run for run in results if key in _conventions(run)],
                f"convention {key}",
                lambda run, key=key: _conventions(run)[key],  # type: ignore[misc]
                so=", so the arms differ in more than their pretraining",
            )


def _environments_differ(results: Sequence[Results]) -> Iterator[str]:
    for key in _keys(run["versions"] for run in results):
        yield from _differs(results, f"{key} version", _entry("versions", key))
    for key in _keys(run["hardware"] for run in results):
        yield from _differs(results, f"hardware ({key})", _entry("hardware", key))


def _seeds(results: Sequence[Results]) -> Iterator[str]:
    seeds = {arm: sorted(run["seed"] for run in _of(results, arm)) for arm in arm_names(results)}
    single = [arm for arm, of_arm in seeds.items() if len(of_arm) == 1]
    if single:
        yield (
            f"One seed only ({_listed(single)}): the spread between seeds is unknown; on VOC "
            "it is about 0.2 AP50, 0.2 AP and 0.4 AP75 (one standard deviation)."
        )
    counts = {arm: len(of_arm) for arm, of_arm in seeds.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{clean(arm)}: {count}" for arm, count in counts.items())
        yield f"The arms have different numbers of seeds ({listed})."
    elif len({tuple(of_arm) for of_arm in seeds.values()}) > 1:
        listed = ", ".join(f"{clean(arm)}: {of_arm}" for arm, of_arm in seeds.items())
        yield f"The arms have different seeds ({listed}): only common seeds can be paired."


def _values(results: Sequence[Results]) -> Iterator[str]:
    metrics = [metric for metric in metric_names(results) if not is_per_class(metric)]
    for arm in arm_names(results):
        runs = _of(results, arm)
        for metric in metrics:
            missing = len(runs) - len(values_by_seed(runs, arm, metric))
            if missing:
                yield (
                    f"Arm {clean(arm)} has no {clean(' '.join(metric))} in {missing} of "
                    f"{len(runs)} runs."
                )
        different = {json.dumps(run["metrics"], sort_keys=True) for run in runs}
        if len(different) < len(runs):
            yield (
                f"Arm {clean(arm)} has the same metrics, digit for digit, under different "
                "seeds: the seed may not have been applied."
            )


def _deviations(results: Sequence[Results]) -> Iterator[str]:
    of_all = [set(run["deviations"]) for run in results]
    shared = set.intersection(*of_all) if of_all else set()
    ordered = list(dict.fromkeys(text for run in results for text in run["deviations"]))
    common = [text for text in ordered if text in shared]
    if common:
        yield f"All runs deviate from the recipe: {_listed(common)}."
    for text in ordered:
        if text not in shared:
            who = _who(results, [run for run in results if text in run["deviations"]])
            yield f"Only {who} deviates from the recipe in this: {clean(text)}."


def _load_reports_missing(results: Sequence[Results]) -> Iterator[str]:
    without = [run for run in results if run["weights"] is not None and not run.get("load_report")]
    if without:
        yield (
            f"No load report for {_who(results, without)}: nothing shows that the weights "
            "were loaded."
        )


def _pretrained_on_test(results: Sequence[Results]) -> Iterator[str]:
    for run in _first_of_each_arm(results):
        if seen := run.get("test_images_pretrained_on"):
            yield (
                f"Arm {clean(run['arm'])} was pretrained on test images: at least {seen} of "
                f"{run['dataset']['test_images']}."
            )


def _frozen_at_random(results: Sequence[Results]) -> Iterator[str]:
    for run in _first_of_each_arm(results):
        frozen = [
            module["module"]
            for module in _modules(run)
            if module["frozen"] and module["initialised"] and not module["loaded"]
        ]
        if frozen:
            yield (
                f"Arm {clean(run['arm'])} never trains {_listed(frozen)}, frozen at random "
                "initial values (MODEL.BACKBONE.FREEZE_AT)."
            )


def _differs(
    results: Sequence[Results],
    what: str,
    value: Callable[[Results], Any],
    brief: bool = False,
    so: str = "",
) -> Iterator[str]:
    """One sentence if ``value`` is not the same in all runs, naming who has which."""
    groups: dict[str, list[Results]] = {}
    for run in results:
        groups.setdefault(_shown(value(run)), []).append(run)
    if len(groups) > 1:
        listed = "; ".join(
            _who(results, runs) if brief else f"{_shortened(shown)} ({_who(results, runs)})"
            for shown, runs in groups.items()
        )
        yield f"The {clean(what)} differs: {listed}{so}."


def _who(results: Sequence[Results], runs: Sequence[Results]) -> str:
    """The arms of ``runs``, with the seeds of those of which only a part is meant."""
    named = []
    for arm in arm_names(runs):
        seeds = [str(run["seed"]) for run in _of(runs, arm)]
        whole = len(seeds) == len(_of(results, arm)) and len(arm_names(results)) > 1
        named.append(clean(arm) if whole else f"{clean(arm)} seed {'+'.join(seeds)}")
    return ", ".join(named)


def _loaded_runs(results: Sequence[Results]) -> Iterator[tuple[Results, list[dict[str, Any]]]]:
    """The first run of every arm that has weights, with its load report."""
    for run in _first_of_each_arm(results):
        if run["weights"] is not None:
            yield run, _modules(run)


def _modules(run: Results) -> list[dict[str, Any]]:
    return (run.get("load_report") or {}).get("modules", [])


def _first_of_each_arm(results: Sequence[Results]) -> list[Results]:
    return [_of(results, arm)[0] for arm in arm_names(results)]


def _of(results: Sequence[Results], arm: str) -> list[Results]:
    return [run for run in results if run["arm"] == arm]


def _entry(section: str, key: str) -> Callable[[Results], Any]:
    return lambda run: run[section].get(key)


def _conventions(run: Results) -> dict[str, Any]:
    """What the weights state, and what the run applied, which random weights have as well."""
    return ((run["weights"] or {}).get("conventions") or {}) | run.get("conventions", {})


def _keys(sections: Iterator[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for section in sections for key in section))


def _listed(texts: Sequence[str]) -> str:
    return ", ".join(clean(text) for text in texts)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _shortened(text: str, limit: int = 80) -> str:
    text = clean(text)
    return text if len(text) <= limit else text[: limit - 1] + "…"
