"""Hyper-parameters as data: one TOML file a preset, a list of rules; later rules win.

A rule names the ``methods``, ``datasets`` and ``ipcs`` it is for (none: all), the methods whose authors ``published``
its settings, whose they are for the others (``settings_of``) and the ``source``, and gives settings by section
(``settings``: the method's).
"""
