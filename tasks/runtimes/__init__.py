"""One small interface over inference engines: load, run, describe, close.

`tasks.runtimes.interface` names the engines and opens one; each has a module of its own.
No engine is imported before it is asked for, so that serving with one needs no other installed.
"""
