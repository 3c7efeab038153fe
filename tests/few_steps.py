"""Every plugin that nftbench ships, as specs that take a few steps."""

from __future__ import annotations

from typing import get_args

from nftbench.attacks.mask_recovery import Estimator
from nftbench.planning import registry

SPECS = {
    "defenses": {
        "pmp": ("pmp[discovery_steps=3]", "pmp[complement=released,discovery_steps=3,interval=5,radius=0.1]"),
        "checkpoint": (),  # needs a checkpoint
        "smaller": (),  # likewise
        "continued": ("continued[steps=2]",),
        "condition_number": (
            "condition_number[harmful=toy_topic,epochs=1,batch=8]",
            "condition_number[harmful=toy_topic,balanced=true,lambda_ill=1,lambda_well=1,epochs=1]",
        ),
        "trap2": (
            "trap2[task=toy_topic,steps=3]",
            "trap2[task=toy_topic,update=full,steps=3]",
            "trap2[task=toy_topic,strength=0,steps=2]",
        ),
        "dlr_lock": ("dlr_lock[depth=2,module_steps=2,joint_steps=2]",),
        "specdef": ("specdef", "specdef[form=folded]"),
        "vaccine": ("vaccine[steps=3]", "vaccine[steps=3,trained=full]"),
        "booster": ("booster[harmful=toy_topic,steps=3]",),
        "lox": ("lox[steps=3]", "lox[harmful=toy_topic,steps=3]"),
        "repnoise": ("repnoise[harmful=toy_topic,steps=3]",),
        "seam": ("seam[harmful=toy_topic,steps=3]",),
        "tar": ("tar[harmful=toy_topic,steps=2,inner_steps=4,mapping_steps=2]",),
        "sophon": ("sophon[harmful=toy_topic,steps=2,inner_steps=2,batch=8]",),
        "clamp": ("clamp[harmful=toy_topic,steps=2,inner_steps=2,batch=8]",),
    },
    "attacks": {
        "full": (
            "full",
            "full[optimizer=sgd]",
            "full[optimizer=muon]",
            "full[clip=false,warmup=100,decay=true,average=true]",
        ),
        "lora": ("lora", "lora[targets=mlp]"),
        "layers": ("layers", "layers[end=first]"),
        "few_shot": ("few_shot[shots=3,draws=1]",),
        "long": ("long[times=2]",),
        "heal": ("heal[steps=4]",),
        "scratch": ("scratch", "scratch[text=true,steps=4]"),
        "redistill": ("redistill[steps=6]", "redistill[what=model,steps=6]"),
        "replay": ("replay[blocks=16,length=16]",),
        "prefix": ("prefix[frozen=1]", "prefix[text=passage,length=3]"),
        "prune": ("prune", "prune[scope=per_tensor]"),
        "quantize": ("quantize", "quantize[bits=4]"),
        "mask_recovery": tuple(f"mask_recovery[estimator={name},batches=2,guesses=2]" for name in get_args(Estimator)),
        "soft_mask": ("soft_mask", "soft_mask[by=learnt]"),
        "memory_light": ("memory_light", "memory_light[by=mezo,directions=2]"),
        "reinit": ("reinit", "reinit[blocks=first]"),
        "precondition": ("precondition", "precondition[by=newton]", "precondition[by=lbfgs]"),
        "inject": ("inject", "inject[what=split]"),
        "difference": ("difference", "difference[to=sibling]"),
        "pipeline": ("pipeline[preparations=heal[steps=3]+redistill[steps=3]+rebalance]",),
    },
}


def specs(kind: registry.Kind) -> list[str]:
    """One or more specs of each plugin that nftbench ships."""
    ours = [plugin.name for plugin in registry.available(kind).values() if plugin.origin == "nftbench"]
    return [spec for name in ours for spec in SPECS.get(kind, {}).get(name, (name,))]
