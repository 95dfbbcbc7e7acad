"""Hydra configuration of the commands, installed as the package `jepa.conf`."""
