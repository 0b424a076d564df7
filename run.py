"""Runs active learning as configured: python run.py dataset=cifar100 method=sslpm seed=0 (see --help).

Hydra composes the config from conf/, `sslpl.command.launch` checks it and builds the parts, and
`sslpl.cycle.run_active_learning` is the loop. The installed command `sslpl` is the same.
"""

from sslpl.command.cli import main

if __name__ == "__main__":
    main()
