"""Tables of papers, one command each.

  python ablation.py [--list]               all tables, their hours, and what cannot be expressed
  python ablation.py NAME --help            one of them: its rows, what the paper has, its claims
  python ablation.py NAME size=small        trains, evaluates and prints one, or goes on with it
  python ablation.py NAME [SETTING=VALUE]   at full size, with settings of train.py, such as
                                            hydra/launcher=slurm hydra.launcher.partition=gpu

The third is python train.py -m +ablation=NAME size=small. To expect: docs/ablations.md."""

from runtime.signals import end_at_once

if __name__ == "__main__":
    end_at_once()  # also while the rest is imported, which takes seconds

import sys

from config.overrides import options
from runtime.errors import UserError, near, script
from studies.ablation.catalogue import catalogue, described


@script
def start() -> None:
    name, *rest = sys.argv[1:] or ["--list"]
    if name in ("-h", "--help"):
        print(__doc__)
    elif name == "--list":
        print(catalogue())
    elif name not in options("ablation"):
        raise UserError(f"{name}: there is no such table; {near(name, options('ablation'))}")
    elif {"-h", "--help"} & {*rest}:
        print(described(name))
    else:
        import train

        sys.argv = ["train.py", "-m", f"+ablation={name}", *rest]
        train.start()


if __name__ == "__main__":
    start()
