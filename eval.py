"""`dynpix eval` of a clone that is not installed; see `dynpix_jax.cli.eval`."""

from dynpix_jax.cli.common import run_main
from dynpix_jax.cli.eval import main

if __name__ == "__main__":
    run_main(main)
