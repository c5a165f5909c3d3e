"""Studies of trained models, one module each, run as `python -m experiments.studies.NAME`."""
