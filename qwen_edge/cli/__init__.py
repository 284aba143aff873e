"""The command line: one module a verb, each exposing `command`."""
