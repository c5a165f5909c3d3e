"""Runs of train.py over several seeds, the studies of trained models, and the reports on both."""
