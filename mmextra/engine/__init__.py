"""Hooks, loops, optim wrappers and initialisers that more than one wing uses."""
