"""Level 6: the `dynpix` command. Entry points parse, build and call; the logic lives below."""
