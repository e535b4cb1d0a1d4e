"""`dynpix train` of a clone that is not installed; see `dynpix_jax.cli.train`."""

from dynpix_jax.cli.common import run_main

if __name__ != "__mp_main__":  # the loader's processes import this file, too, and train nothing
    from dynpix_jax.cli.train import main

if __name__ == "__main__":
    run_main(main)
