"""Runs active learning as configured: python run.py dataset=cifar100 method=sslpm seed=0 (see --help).

Hydra composes the config from conf/, `sslpl.config` checks it and builds its objects, `sslpl.run` starts or resumes the
run, and `sslpl.loop.run_active_learning` is the loop. The installed command `sslpl` does the same.
"""

from sslpl.run.cli import main

if __name__ == "__main__":
    main()
