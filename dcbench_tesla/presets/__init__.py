"""Hyper-parameters as data: one TOML file a preset, a list of rules; later rules win.

A rule names the ``methods``, ``datasets`` and ``ipcs`` it is for (none: all), whether it is a cell the literature
publishes (``published``) and its ``source``, and gives settings by section (``settings``: the method's).
"""
