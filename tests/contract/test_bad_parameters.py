"""Parameters out of range, and a missing one, are refused by a message that names the parameter."""

from __future__ import annotations

import re

import pytest

from nftbench.errors import NftbenchError
from nftbench.planning import registry
from nftbench.testing import tiny_suite

STEPS = "steps must be at least 1 and learning_rate above 0"
DISCOVERY = "steps must be more than patience"
READING = "groups, size and steps must be at least 1"
SCALES = "scales must lie as 0 < minimum < 1 - band < 1 \\+ band < maximum"
COUNTS = "rank, steps and batch must be at least 1; cap, alpha and learning_rate above 0"

REFUSED: dict[registry.Kind, dict[str, str]] = {
    "attacks": {
        "full[warmup=-1]": "warmup must be at least 0",
        "long[times=1]": "times must be at least 2",
        "layers[share=0]": r"share must lie in \(0, 1\]",
        "layers[share=1.5]": r"share must lie in \(0, 1\]",
        "lora[rank=0]": "rank must be at least 1",
        "dora[rank=0]": "rank must be at least 1",
        "heal[steps=0]": STEPS,
        "heal[learning_rate=0]": STEPS,
        "scratch[text=true,steps=0]": STEPS,
        "redistill[steps=0]": STEPS,
        "redistill[learning_rate=-1]": STEPS,
        "reinit[count=0]": "count must be at least 1",
        "replay[share=0]": "share must lie between 0 and 1, not 0",
        "replay[share=1]": "share must lie between 0 and 1, not 1",
        "replay[blocks=0]": "blocks must be at least 1 and length at least 2",
        "replay[length=1]": "blocks must be at least 1 and length at least 2",
        "noise[scale=0]": "scale must be above 0, not 0",
        "prune[share=0]": "share must lie between 0 and 1, not 0",
        "prune[share=1]": "share must lie between 0 and 1, not 1",
        "quantize[bits=3]": "bits",
        "mask_recovery[batches=0]": "batches must lie between 1 and 1024, not 0",
        "mask_recovery[batches=1025]": "batches must lie between 1 and 1024, not 1025",
        "mask_recovery[shadows=0]": "shadows and guesses must be at least 1",
        "mask_recovery[guesses=0]": "shadows and guesses must be at least 1",
    },
    "defenses": {
        "pmp[ratio=1.5]": r"ratio must lie in \(0, 1\], not 1\.5",
        "pmp[ratio=0]": r"ratio must lie in \(0, 1\], not 0",
        "pmp[patience=0]": "at least 1",
        "random_mask[ratio=-1]": r"ratio must lie in \(0, 1\], not -1",
        "narrow[keep=1]": "keep must lie between 0 and 1",
        "early_stop[fraction=1]": "fraction must lie between 0 and 1",
        "noise[scale=0]": "scale must be above 0",
        **dict.fromkeys(("pmp[ratio=.nan]", "random_mask[ratio=.nan]", "early_stop[fraction=.nan]"), "not nan"),
        "narrow[keep=.nan]": "not nan",
        "dlr_lock[depth=0]": "depth, batch and learning_rate must be above 0",
        "dlr_lock[learning_rate=0]": "depth, batch and learning_rate must be above 0",
        "dlr_lock[joint_steps=-1]": "joint_steps at least 0",
        "condition_number[harmful=diabetes,batch=0]": "epochs, batch and blocks must be at least 1",
        "specdef[alpha=0.5]": "alpha, k and layers must be at least 1",
        "specdef[k=0]": "alpha, k and layers must be at least 1",
        "specdef[layers=0]": "alpha, k and layers must be at least 1",
        "vaccine[rho=-1]": "rho must be at least 0",
        "booster[harmful=toy_topic,distance=0]": "distance, alpha and learning_rate must be above 0",
        "lox[k=-1]": "k and coefficient must be at least 0; steps and batch at least 1",
        "lox[margin=0]": "margin and learning_rate must be above 0",
        "repnoise[harmful=toy_topic,batch=1]": "batch at least 2",
        "repnoise[harmful=toy_topic,alpha=-1]": "must be at least 0",
        "seam[harmful=toy_topic,radius=0]": "radius and learning rate above 0",
        "tar[harmful=toy_topic,inner_steps=3]": "inner_steps at least 4",
        "sophon[harmful=toy_topic,clip=0]": "learning rates and clip above 0",
        "clamp[harmful=toy_topic,probe=0]": "probe and ceiling must be above 0",
        "trap2[task=toy_topic,minimum=0]": SCALES,
        "trap2[task=toy_topic,minimum=0.97]": SCALES,
        "trap2[task=toy_topic,band=0]": SCALES,
        "trap2[task=toy_topic,maximum=1.05]": SCALES,
        "trap2[task=toy_topic,strength=-1]": "strength must be at least 0",
        "trap2[task=toy_topic,dropout=1]": r"dropout in \[0, 1\)",
        "trap2[task=toy_topic,cap=0]": COUNTS,
        "trap2[task=toy_topic,steps=0]": COUNTS,
        "trap2[task=toy_topic,weighting=log]": "weighting",
        "trap2[task=toy_topic,update=half]": "update",
    },
    "tasks": {
        "digits_pair[first=10]": "first and second are digits, 0 to 9",
        "digits_pair[first=3,second=3]": "first and second are both 3",
        "diabetes[part=third]": "part",
    },
    "yardsticks": {
        "rir[groups=0]": READING,
        "rir[size=0]": READING,
        "rir[steps=0]": READING,
        "rir[ridge=1]": "ridge",
        "early_bird[steps=5]": DISCOVERY,
        "early_bird[steps=0]": DISCOVERY,
        "early_bird[batch=0]": DISCOVERY,
        "early_bird[patience=0]": DISCOVERY,
    },
}


def refusal(kind: registry.Kind, spec: str) -> str:
    """The error message of creating this plugin; empty where there is no error."""
    try:
        registry.create(kind, spec)
    except NftbenchError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kind", REFUSED)
def test_parameters_out_of_range_are_refused_by_name(kind: registry.Kind) -> None:
    for spec, message in REFUSED[kind].items():
        assert re.search(message, refusal(kind, spec)), spec


@pytest.mark.parametrize("name", ["booster", "clamp", "repnoise", "seam", "sophon", "tar"])
def test_a_defense_against_a_task_is_refused_without_one(name: str) -> None:
    with pytest.raises(NftbenchError, match=rf"{name} needs a harmful task: write {name}\[harmful=…\]"):
        registry.create("defenses", name).check(tiny_suite())
