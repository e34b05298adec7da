"""What a person runs: data, objectives, the train loop, sweeps, launchers, recipes and the command line."""
