"""The contract as tests: a check for each kind of plugin, which any repository can call on plugins of its own.

A check runs the plugin on tiny models of three architectures and raises `BrokenPromiseError` where the plugin does
not do what its protocol in `nftbench.contract` says. The tiny suite and the small plugins that the checks run on are
here too, for tests that go further.

A test of a plugin is one line:

    def test_mine() -> None:
        check_defense("mine.py[strength=2]")

The name of an installed plugin, a module, a class or an object will do, too. `nftbench check` runs the same checks
without pytest: `file.py` examines all promises of the plugins in a file.
"""

from __future__ import annotations

from nftbench.testing.attack import attack_inputs, check_attack
from nftbench.testing.defense import check_defense
from nftbench.testing.promises import BrokenPromiseError
from nftbench.testing.stand_ins import FirstWord, Questions, RandomMask, Undefended
from nftbench.testing.task import check_task
from nftbench.testing.tiny import ARCHITECTURES, task_context, temporary_workspace, tiny_suite
from nftbench.testing.yardstick import check_yardstick

__all__ = [
    "ARCHITECTURES",
    "BrokenPromiseError",
    "FirstWord",
    "Questions",
    "RandomMask",
    "Undefended",
    "attack_inputs",
    "check_attack",
    "check_defense",
    "check_task",
    "check_yardstick",
    "task_context",
    "temporary_workspace",
    "tiny_suite",
]
