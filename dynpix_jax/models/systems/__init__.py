"""One file a paper: the network with its losses, schedules and training stages."""
